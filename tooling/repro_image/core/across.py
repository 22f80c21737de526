"""Answers from two numeric classes: no more apart than the order of work alone puts them, or another model.

Bits differ between classes, and sooner or later so do tokens. What is judged is the replay, where both
sides read the same tokens, against the noise floor that the epoch recorded.
"""

from statistics import median

import msgspec

from repro_image.core.differences import Rate, is_replay, line_up, rate_of
from repro_image.core.epoch import NoiseFloor
from repro_image.core.golden import Golden
from repro_image.core.odds import logit_ulp, replay_steps

# A near tie may fall either way; a step of the logits at each side of either token makes four.
_TIE_ULPS = 4
_MEDIANS = 3
# A smaller change than this is none of a likely logit, but of the arithmetic after the logits.
_LEAST_ULPS = 0.01


class Across(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The three tests of a replay in another numeric class; all of them have to hold.

    tokens:              replayed tokens that were judged.
    largest_margin_nats: of all flips, how far either side's likeliest token lies above the one that the other
                         side likes best; None without flips.
    tau_nats:            what a margin may be: 4 ulp of the logits, or the floor's 99th percentile if larger.
    flips:               likeliest tokens that differ, per replayed token.
    floor_flips:         tokens that the order of work alone flips, per generated token.
    flips_hold:          the lower end of the flips' interval is no higher than the upper end of the floor's.
    median_nats:         median change of the replayed token's log-probability.
    median_limit_nats:   what that may be: three times the floor's, or 0.01 ulp of the logits if larger.
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
            return "no further apart than another order of work puts one class from itself"
        tests = (
            (self.margins_hold, "tokens flip that were no near tie"),
            (self.flips_hold, "more tokens flip than by another order of work"),
            (self.median_holds, "log-probabilities move more than by another order of work"),
        )
        return "; ".join(text for holds, text in tests if not holds)


def judge_across(expected: Golden, found: Golden, floor: NoiseFloor) -> Across | None:
    """Return the tests of ``found``, which ran in another class; None where nothing was replayed.

    floor: of ``expected``.
    """
    pairs = [pair for pair in line_up(expected, found) if is_replay(expected, pair[0])]
    steps = [step for pair in pairs for step in replay_steps(*pair, top_k=expected.request.top_k)]
    margins = [step.margin_nats for step in steps if step.margin_nats is not None]
    nats = [step.nats for step in steps if step.nats is not None]
    if not nats:
        return None
    largest = max(margins, default=None)
    ulp = logit_ulp(expected)
    tau = max(_TIE_ULPS * ulp, floor.p99_nats)
    flips = rate_of(len(margins), len(steps))
    floor_flips = rate_of(round(floor.flip_rate * floor.tokens), floor.tokens)
    middle, limit = median(nats), max(_MEDIANS * floor.median_nats, _LEAST_ULPS * ulp)
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
