"""Three runs that say what a golden is worth: one reordered, one in float32, one with a changed weight."""

import math
from collections.abc import Mapping
from itertools import takewhile
from statistics import median, quantiles
from typing import Literal

import msgspec

from repro_image.core.differences import count_differences, is_replay, line_up, replayed_steps
from repro_image.core.engines import batching
from repro_image.core.epoch import NegativeControl, NoiseFloor, Rounding
from repro_image.core.golden import Golden, GoldenRequest, unpack_floats, unpack_ids
from repro_image.core.project import EngineValue

# Enough prompts for any change worth the name, few enough to cost seconds.
_CONTROL_PROMPTS = 4
_CONTROL_CHANGE = "one weight matrix times 1 + 2**-7"
_EXACT = "float32"


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
        p99_nats=_p99(nats),
        tokens=flips.trials,
    )


def exact_engine(engine: Mapping[str, EngineValue]) -> dict[str, EngineValue] | None:
    """Return engine settings that compute in float32, or None where ``engine`` does so already."""
    if engine.get("dtype") == _EXACT:
        return None
    return {**batching(engine), "dtype": _EXACT, "kv_cache_dtype": "auto"}


def replayed_part(golden: Golden) -> Golden | None:
    """Return the lanes that are replayed with their replays, or None where nothing is.

    Lanes of an engine that was started for them are left out: that engine need not know float32.
    """
    lanes = [lane for lane in golden.request.lanes if not lane.batch_invariant]
    replays = [lane for lane in lanes if lane.replay_of]
    named = {lane.name for lane in replays} | {name for lane in replays for name in lane.replay_of}
    if not replays or not named <= {lane.name for lane in lanes}:
        return None
    request = msgspec.structs.replace(
        golden.request, lanes=tuple(lane for lane in lanes if lane.name in named)
    )
    completions = tuple(each for each in golden.completions if each.lane in named)
    return msgspec.structs.replace(golden, request=request, completions=completions)


def replay_only(request: GoldenRequest) -> GoldenRequest:
    """Return ``request`` with one new token a prompt, and every lane in one call: only its replays count."""
    lanes = [
        msgspec.structs.replace(
            lane,
            together=True,
            prompts=tuple(
                msgspec.structs.replace(
                    prompt, sampling=msgspec.structs.replace(prompt.sampling, max_tokens=1)
                )
                for prompt in lane.prompts
            ),
        )
        for lane in request.lanes
    ]
    return msgspec.structs.replace(request, lanes=tuple(lanes))


def rounding(expected: Golden, exact: Golden) -> Rounding | None:
    """Return how far the replay of ``expected`` is from ``exact``, which was fed the same tokens.

    None where nothing was replayed, or float32 came to no finite answer.
    """
    steps = replayed_steps(expected, exact)
    nats = [step.nats for step in steps if step.nats is not None]
    if not nats or not all(map(math.isfinite, nats)):
        return None
    flips = sum(step.margin_nats is not None for step in steps)
    return Rounding(
        flip_rate=flips / len(steps),
        median_nats=median(nats),
        p99_nats=_p99(nats),
        tokens=len(steps),
    )


def _p99(nats: list[float]) -> float:
    return quantiles(nats, n=100, method="inclusive")[98] if len(nats) > 1 else 0.0


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
