"""The first part of a golden, as a run that stops early answers it."""

from typing import NamedTuple

import msgspec
import pytest
from msgspec.structs import replace

from repro_image.core.comparison import Verdict, compare
from repro_image.core.golden import (
    Golden,
    RunnerOutput,
    expected_ids,
    unpack_floats,
    unpack_ids,
    wrong_shape,
)
from repro_image.core.parts import expected_answers, first_part, golden_part, is_as_expected, part_with
from repro_image.runner import golden_runner
from tests.unit.made_goldens import INSIDE, change, make_golden, other_bits


def together() -> Golden:
    """Return a golden whose sampled lane is asked in one call."""
    golden = make_golden()
    greedy, sampled, replay = golden.request.lanes
    lanes = (greedy, replace(sampled, together=True), replay)
    return replace(golden, request=replace(golden.request, lanes=lanes))


def output(golden: Golden) -> RunnerOutput:
    return RunnerOutput(
        nonce="0" * 64,
        completions=golden.completions,
        vocabulary=golden.vocabulary,
        weights=golden.weights,
        canaries=golden.canaries,
        inside=INSIDE,
        seconds={},
    )


@pytest.mark.parametrize("answers", [1, 2, 3, 4, 5, 10])
def test_a_part_that_ends_with_a_call_asks_for_the_first_answers(answers: int) -> None:
    golden = make_golden()
    part = golden_part(golden, answers)
    assert part is not None
    assert expected_ids(part.request) == expected_ids(golden.request)[:answers]
    assert wrong_shape(part.request, part.completions) is None
    assert compare(part, part).verdict is Verdict.MATCH


@pytest.mark.parametrize("answers", [0, 6, 9, 11])
def test_a_part_that_ends_within_a_replay_or_nowhere_is_none(answers: int) -> None:
    assert first_part(make_golden().request, answers) is None


def test_prompts_that_are_asked_together_are_never_parted() -> None:
    request = together().request
    assert [first_part(request, n) is None for n in (3, 4, 5)] == [False, True, False]


@pytest.mark.parametrize(("answer", "answers"), [(0, 1), (2, 3), (3, 5), (4, 5), (5, 10), (9, 10)])
def test_the_shortest_part_with_an_answer_ends_with_its_call(answer: int, answers: int) -> None:
    assert part_with(together().request, answer) == answers


def test_every_compared_bit_and_every_weight_is_expected() -> None:
    golden = make_golden()
    expected = expected_answers(golden)
    assert is_as_expected(output(golden), expected)
    assert is_as_expected(output(replace(golden, completions=golden.completions[:2])), expected)
    assert not is_as_expected(output(change(golden, {"sampled/1": other_bits(7)})), expected)
    assert not is_as_expected(output(replace(golden, weights={"embed": "aa"})), expected)


@pytest.mark.parametrize(
    ("weights", "differ"),
    [
        ({"embed": "aa", "layers.0": "bb"}, False),
        ({"embed": "aa", "layers.0": "xx"}, True),
        ({"embed": "aa"}, True),
        ({}, True),
        ({"rank0.embed": "xx"}, False),
    ],
)
def test_runner_and_host_agree_on_what_other_weights_are(weights: dict[str, str], differ: bool) -> None:
    golden = make_golden()
    assert golden_runner._are_others(weights, golden.weights) is differ
    assert is_as_expected(output(replace(golden, weights=weights)), expected_answers(golden)) is not differ


class Logprob(NamedTuple):
    logprob: float


@pytest.mark.parametrize("differs", [False, True])
def test_the_runner_knows_the_expected_answers_as_the_host_does(differs: bool) -> None:
    golden = make_golden()
    asked = {
        "request": msgspec.to_builtins(golden.request),
        "expected": msgspec.to_builtins(expected_answers(golden)),
    }
    runner = golden_runner.Runner(asked, "model", lambda **_: None)
    first = change(golden, {"greedy/0": other_bits(7)} if differs else {}).completions[0]
    odds, alternatives = unpack_floats(first.logprobs), unpack_ids(first.topk_ids)
    logprobs = [
        {alternatives[2 * n]: Logprob(odds[3 * n + 1]), alternatives[2 * n + 1]: Logprob(odds[3 * n + 2])}
        for n in range(len(odds) // 3)
    ]
    text, fed, answer = (
        list(unpack_ids(part)) for part in (first.tokenized, first.prompt_ids, first.output_ids)
    )
    runner.keep("greedy/0", {"name": "greedy"}, text, fed, answer, logprobs, "length")
    assert runner.differs is differs
