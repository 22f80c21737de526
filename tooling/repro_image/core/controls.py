"""Two runs that say what a golden is worth: one reordered on purpose, one with a changed weight."""

from collections.abc import Mapping
from itertools import takewhile
from statistics import median, quantiles
from typing import Literal

import msgspec

from repro_image.core.differences import count_differences, is_replay, line_up
from repro_image.core.engines import batching
from repro_image.core.epoch import NegativeControl, NoiseFloor
from repro_image.core.golden import Golden, GoldenRequest, unpack_floats, unpack_ids
from repro_image.core.project import EngineValue

# Enough prompts for any change worth the name, few enough to cost seconds.
_CONTROL_PROMPTS = 4
_CONTROL_CHANGE = "one weight matrix times 1 + 2**-7"


def reordered_request(request: GoldenRequest) -> GoldenRequest:
    """Return ``request`` with each lane asked in one call instead of one by one."""
    lanes = tuple(msgspec.structs.replace(lane, together=True) for lane in request.lanes)
    return msgspec.structs.replace(request, lanes=lanes)


def reordered_engine(engine: Mapping[str, EngineValue]) -> dict[str, EngineValue]:
    """Return engine settings with which calls are really batched."""
    return batching(engine)


def noise_floor(expected: Golden, reordered: Golden) -> NoiseFloor:
    """Return what the order of work alone changes, from generated tokens whose past both sides share.

    Replayed tokens are no measure of it: they are read in one step, whose sums may not depend on what else is
    in the batch.
    """
    flips = count_differences(expected, reordered).flips
    width = 1 + expected.request.top_k
    nats: list[float] = []
    for ours, theirs in line_up(expected, reordered):
        if not is_replay(expected, ours):
            ids = zip(unpack_ids(ours.output_ids), unpack_ids(theirs.output_ids), strict=False)
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ids))
            odds = [unpack_floats(side.logprobs)[::width][:shared] for side in (ours, theirs)]
            nats += [abs(a - b) for a, b in zip(*odds, strict=True)]
    return NoiseFloor(
        flip_rate=flips.events / flips.trials if flips.trials else 0.0,
        median_nats=median(nats) if nats else 0.0,
        p99_nats=quantiles(nats, n=100, method="inclusive")[98] if len(nats) > 1 else 0.0,
        tokens=flips.trials,
    )


def control_part(golden: Golden) -> Golden:
    """Return the first prompts of the first lane: what the changed model is asked."""
    lane = golden.request.lanes[0]
    prompts = lane.prompts[:_CONTROL_PROMPTS]
    names = {prompt.id for prompt in prompts}
    lanes = (msgspec.structs.replace(lane, prompts=prompts),)
    return msgspec.structs.replace(
        golden,
        request=msgspec.structs.replace(golden.request, lanes=lanes),
        completions=tuple(completion for completion in golden.completions if completion.id in names),
    )


def negative_control(expected: Golden, changed: Golden) -> NegativeControl | None:
    """Return which level of the answers alone first finds the change, or None: the golden has no teeth."""
    for row in count_differences(expected, changed).levels:
        if row.level != "H0" and not row.equal:
            level: Literal["H1", "H2", "H3"] = row.level  # type: ignore[assignment]  # LEVELS without H0
            return NegativeControl(change=_CONTROL_CHANGE, found_by=level, prompts=row.prompts)
    return None
