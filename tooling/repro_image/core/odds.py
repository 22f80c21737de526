"""What the log-probabilities of single tokens say: margins, the step of the logits, flips in a replay."""

import math
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from repro_image.core.golden import Completion, Golden, unpack_floats, unpack_ids

# Logits of 16 bits lie on a grid that shows in the gaps between log-probabilities; the finest that stands out
# from the rounding of float32 is 2**-12.
_GRID = 4096
_OFF_GRID = 3e-6 * _GRID


class ReplayStep(NamedTuple):
    """One replayed token, before which both sides had read the same.

    nats:        change of its log-probability; None where the two sides were fed different tokens here.
    margin_nats: where the likeliest tokens differ: how far either side's lies above the one that the other
                 likes best, the larger of the two. Where that is none of its alternatives, as far as above
                 the last of them.
    """

    nats: float | None
    margin_nats: float | None


def replay_steps(ours: Completion, theirs: Completion, *, top_k: int) -> Iterator[ReplayStep]:
    """Yield the steps of one replayed prompt, as far as both sides were fed the same tokens.

    Odds at a position depend on the tokens before it, so the first one that differs still counts. Without
    alternatives (top_k 0) nothing can be told.
    """
    ids, other = unpack_ids(ours.output_ids), unpack_ids(theirs.output_ids)
    parted = first_difference(ids, other)
    if not top_k:
        return
    sides = [(unpack_ids(side.topk_ids), unpack_floats(side.logprobs)) for side in (ours, theirs)]
    count = min(len(ids), len(other), len(ids) if parted is None else parted + 1)
    for n in range(count):
        alternatives = [tokens[top_k * n : top_k * (n + 1)] for tokens, _ in sides]
        values = [odds[(1 + top_k) * n : (1 + top_k) * (n + 1)] for _, odds in sides]
        same_token = n != parted
        yield ReplayStep(
            nats=abs(values[0][0] - values[1][0]) if same_token else None,
            margin_nats=_margin(alternatives, values),
        )


def _margin(alternatives: list[tuple[int, ...]], values: list[tuple[float, ...]]) -> float | None:
    likeliest = [tokens[0] for tokens in alternatives]
    if likeliest[0] == likeliest[1]:
        return None
    gaps = []
    for tokens, odds, rival in zip(alternatives, values, reversed(likeliest), strict=True):
        column = 1 + tokens.index(rival) if rival in tokens else len(tokens)
        gaps.append(odds[1] - odds[column])
    return max(gaps)


def logit_ulp(golden: Golden) -> float:
    """Return the step of the model's logits in nats: one unit in the last place where the likely ones lie.

    Gaps between log-probabilities are gaps between logits. With bfloat16 or float16 logits they are
    multiples of a power of two, the median of which over all tokens is returned; float32 logits show no such
    grid, and then it is float32's step at the likeliest token's log-probability.
    """
    steps, fine, width = [], [], 1 + golden.request.top_k
    for completion in golden.completions:
        odds = unpack_floats(completion.logprobs)
        for start in range(0, len(odds), width):
            top = odds[start + 1 : start + width]
            step = _grid_step(top)
            if step is None:
                fine += [float32_ulp(abs(value)) for value in top[:1] if math.isfinite(value)]
            elif step:
                steps.append(step)
    if len(steps) >= len(fine):
        return median(steps) if steps else float32_ulp(1.0)
    return median(fine)


def _grid_step(top: tuple[float, ...]) -> float | None:
    """Return the largest power of two that every gap to the first value is a multiple of.

    None where there is none down to the finest; 0 where all values are equal and say nothing.
    """
    bits = 0
    for value in top[1:]:
        gap = (top[0] - value) * _GRID
        if not math.isfinite(gap) or abs(gap - round(gap)) > _OFF_GRID:
            return None
        bits |= round(gap)
    return (bits & -bits) / _GRID


def float32_ulp(value: float) -> float:
    """Return the distance from ``value`` (finite) to the next float32 away from zero."""
    exponent = math.frexp(value)[1] if value else -125
    return math.ldexp(1.0, max(exponent - 24, -149))


def first_difference(ours: tuple[int, ...], theirs: tuple[int, ...]) -> int | None:
    """Return the first position where the two differ or where the shorter one ends, or None."""
    for position, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            return position
    return min(len(ours), len(theirs)) if len(ours) != len(theirs) else None
