"""Answers from two numeric classes: no more apart than order of work and rounding put them, or another model.

Bits differ between classes, and sooner or later so do tokens. What is judged is the replay, where both
sides read the same tokens, against the noise floor that the epoch recorded.
"""

from statistics import median

import msgspec

from repro_image.core.differences import Rate, rate_of, replayed_steps
from repro_image.core.epoch import NoiseFloor, Rounding
from repro_image.core.golden import Golden
from repro_image.core.odds import logit_ulp

# A near tie may fall either way; a step of the logits at each side of either token makes four.
_TIE_ULPS = 4
_MEDIANS = 3
# Two classes whose roundings have nothing in common are the square root of two as far apart as each is from
# float32; the rest is for the median of some hundred tokens.
_ROUNDINGS = 1.75
# A smaller change than this is none of a likely logit, but of the arithmetic after the logits.
_LEAST_ULPS = 0.01


class Across(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The three tests of a replay in another numeric class; all of them have to hold.

    tokens:              replayed tokens that were judged.
    largest_margin_nats: of all flips, how far either side's likeliest token lies above the one that the other
                         side likes best; None without flips.
    tau_nats:            what a margin may be: 4 ulp of the logits, or a 99th percentile of the floor.
    flips:               likeliest tokens that differ, per replayed token.
    floor_flips:         tokens that the order of work flips, per generated token, or that float32 flips, per
                         replayed token: the rate whose interval ends higher.
    flips_hold:          the lower end of the flips' interval is no higher than the upper end of the floor's.
    median_nats:         median change of the replayed token's log-probability.
    median_limit_nats:   what that may be: the largest of 3 times what the order of work changes, 1.75 times
                         what rounding changes, and 0.01 ulp of the logits.
    """

    tokens: int
    largest_margin_nats: float | None
    tau_nats: float
    margins_hold: bool
    flips: Rate
    floor_flips: Rate
    flips_hold: bool
    median_nats: float
    median_limit_nats: float
    median_holds: bool

    @property
    def is_drift(self) -> bool:
        return self.margins_hold and self.flips_hold and self.median_holds

    def told(self) -> str:
        """Return in one sentence what was found."""
        if self.is_drift:
            return "no further apart than order of work and rounding put honest classes"
        tests = (
            (self.margins_hold, "tokens flip that were no near tie"),
            (self.flips_hold, "more tokens flip than the noise floor explains"),
            (self.median_holds, "log-probabilities move more than the noise floor explains"),
        )
        return "; ".join(text for holds, text in tests if not holds)


def floor_rate(floor: NoiseFloor | Rounding) -> Rate:
    """Return how many tokens flipped, with the interval."""
    return rate_of(round(floor.flip_rate * floor.tokens), floor.tokens)


def judge_across(expected: Golden, found: Golden, floor: NoiseFloor) -> Across | None:
    """Return the tests of ``found``, which ran in another class; None where nothing was replayed.

    floor: of ``expected``.
    """
    steps = replayed_steps(expected, found)
    margins = [step.margin_nats for step in steps if step.margin_nats is not None]
    nats = [step.nats for step in steps if step.nats is not None]
    if not nats:
        return None
    largest = max(margins, default=None)
    ulp = logit_ulp(expected)
    yardsticks: list[NoiseFloor | Rounding] = [floor, floor.rounding] if floor.rounding else [floor]
    tau = max(_TIE_ULPS * ulp, *(each.p99_nats for each in yardsticks))
    flips = rate_of(len(margins), len(steps))
    floor_flips = max((floor_rate(each) for each in yardsticks), key=lambda rate: rate.high)
    rounded = _ROUNDINGS * floor.rounding.median_nats if floor.rounding else 0.0
    middle, limit = median(nats), max(_MEDIANS * floor.median_nats, rounded, _LEAST_ULPS * ulp)
    return Across(
        tokens=len(steps),
        largest_margin_nats=largest,
        tau_nats=tau,
        margins_hold=largest is None or largest <= tau,
        flips=flips,
        floor_flips=floor_flips,
        flips_hold=flips.low <= floor_flips.high,
        median_nats=middle,
        median_limit_nats=limit,
        median_holds=middle <= limit,
    )
