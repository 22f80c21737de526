"""The first part of a golden: what a run that stopped early answered, or what shows a difference again."""

from collections.abc import Iterator

from msgspec.structs import replace

from repro_image.core.differences import weight_differences
from repro_image.core.golden import (
    ExpectedAnswers,
    Golden,
    GoldenRequest,
    Lane,
    RunnerOutput,
    completion_digest,
)


def first_part(request: GoldenRequest, answers: int) -> GoldenRequest | None:
    """Return what of ``request`` asks for the first ``answers`` of it, or None where these end within a call.

    A part is asked in the same order and the same calls: its answers are those of the whole.
    """
    lanes: list[Lane] = []
    left = answers
    for lane, size in _sizes(request):
        if left == 0:
            break
        if left >= size:
            lanes.append(lane)
        elif lane.together or lane.replay_of:
            return None
        else:
            lanes.append(replace(lane, prompts=lane.prompts[:left]))
        left -= min(left, size)
    return replace(request, lanes=tuple(lanes)) if lanes and not left else None


def part_with(request: GoldenRequest, answer: int) -> int:
    """Return how many answers the shortest part has that holds number ``answer`` (from 0)."""
    end = 0
    for lane, size in _sizes(request):
        end += size
        if answer < end:
            return end if lane.together or lane.replay_of else answer + 1
    return end


def golden_part(golden: Golden, answers: int) -> Golden | None:
    """Return the first ``answers`` of ``golden``; None as for ``first_part``."""
    request = first_part(golden.request, answers)
    if request is None:
        return None
    return replace(golden, request=request, completions=golden.completions[:answers])


def expected_answers(golden: Golden) -> ExpectedAnswers:
    """Return by what a runner knows answers and weights that are not those of ``golden``."""
    digests = {completion.id: completion_digest(completion) for completion in golden.completions}
    return ExpectedAnswers(completions=digests, weights=golden.weights)


def is_as_expected(found: RunnerOutput, expected: ExpectedAnswers) -> bool:
    same = (completion_digest(each) == expected.completions.get(each.id) for each in found.completions)
    return weight_differences(expected.weights, found.weights) is None and all(same)


def _sizes(request: GoldenRequest) -> Iterator[tuple[Lane, int]]:
    """Yield each lane with the number of its answers."""
    own = {lane.name: len(lane.prompts) for lane in request.lanes}
    for lane in request.lanes:
        yield lane, own[lane.name] + sum(own[source] for source in lane.replay_of)
