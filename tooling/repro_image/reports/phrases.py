"""The figures of a comparison as every report words them."""

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from repro_image.core.across import Across
from repro_image.core.comparison import Comparison, FieldDifference
from repro_image.core.differences import LevelRow, PromptRow, Rate, Token, Visible
from repro_image.core.epoch import NoiseFloor, Rounding
from repro_image.core.transcript import shortened
from repro_image.reports.escape import quoted

LEVEL_NAMES = {
    "H0": "tokenised prompts",
    "H1": "output tokens",
    "H2": "likeliest tokens",
    "H3": "log-probability bits",
}


def level_text(row: LevelRow) -> str:
    return "equal" if row.equal else f"{row.differing} of {row.prompts} prompts differ"


def parting_text(row: PromptRow) -> str:
    """Return where the two sides of ``row`` part; the prompt's name is not in it."""
    if row.divergence is None:
        if row.first_bit_difference is not None:
            return f"position {row.first_bit_difference} of {row.tokens}, tokens same"
        return "the prompt" if not row.equal["H0"] else "the alternatives, tokens and bits same"
    position = row.divergence.position
    told = f"token {position} of {row.tokens}"
    if row.first_bit_difference is not None and row.first_bit_difference < position:
        told += f", bits from token {row.first_bit_difference} on"
    return told


def token_text(token: Token) -> str:
    if token.id is None:
        return "no token: the answer ends before"
    margin = margin_text(token)
    return f"{quoted(shortened(token.text))} (id {token.id})" + (f", {margin}" if margin else "")


def margin_text(token: Token) -> str:
    if token.margin_nats is None or token.margin_ulps is None:
        return ""
    return f"margin {token.margin_nats:.6g} nats = {token.margin_ulps:.6g} ulp"


def rate_text(rate: Rate) -> str:
    interval = f"95 % interval {percent(rate.low)} to {percent(rate.high)}"
    share = f" = {percent(rate.events / rate.trials)}" if rate.trials else ""
    return f"{rate.events} of {rate.trials}{share}, {interval}"


def power_text(sight: Visible) -> str:
    per_token, per_prompt = seen_percent(sight.power.sees_per_token), seen_percent(sight.sees_per_prompt)
    return (
        f"sees a per-token change of p >= {per_token} with {percent(sight.power.confidence)} "
        f"({sight.power.tokens} tokens); with prompts as clusters p >= {per_prompt} ({sight.power.prompts})"
    )


def floor_text(floor: NoiseFloor) -> str:
    told = f"another order of work {_floor_figures(floor)}"
    return f"{told}; float32 arithmetic {_floor_figures(floor.rounding)}" if floor.rounding else told


def _floor_figures(floor: NoiseFloor | Rounding) -> str:
    return (
        f"flips {percent(floor.flip_rate)} of {floor.tokens} tokens and moves "
        f"log-probabilities by {floor.median_nats:.3g} nats (median), {floor.p99_nats:.3g} nats "
        "(99th percentile)"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AcrossTest:
    """One test of two classes, with its figures as text."""

    name: str
    found: str
    limit: str
    holds: bool


def across_tests(across: Across | None) -> list[AcrossTest]:
    """Return the three tests of a run in another class; none where the verdict is about one class."""
    if across is None:
        return []
    margin = across.largest_margin_nats
    return [
        AcrossTest(
            name="every flip is a near tie",
            found="no flips" if margin is None else f"largest margin {margin:.3g} nats",
            limit=f"{across.tau_nats:.3g} nats",
            holds=across.margins_hold,
        ),
        AcrossTest(
            name="no more flips than the noise floor",
            found=f"from {percent(across.flips.low)} on ({across.flips.events} of {across.flips.trials})",
            limit=f"up to {percent(across.floor_flips.high)}",
            holds=across.flips_hold,
        ),
        AcrossTest(
            name="log-probabilities move as little",
            found=f"median {across.median_nats:.3g} nats",
            limit=f"{across.median_limit_nats:.3g} nats: 3 times the noise floor, 1.75 times the "
            "rounding, or 0.01 ulp",
            holds=across.median_holds,
        ),
    ]


def side_texts(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what differed before any token was compared, and the weights: name and both sides."""
    rows = [(item.field, field_text(item)) for item in comparison.fields]
    if comparison.tokenizer:
        first = comparison.tokenizer
        ids = f"expected {_or_end(first.expected)}, found {_or_end(first.found)}"
        rows.append((first.prompt, f"id {first.position}: {ids}"))
    if comparison.weights:
        names = ", ".join(comparison.weights.names)
        left_out = comparison.weights.differing - len(comparison.weights.names)
        more = f" and {left_out} more" if left_out else ""
        rows.append(
            ("weights", f"{comparison.weights.differing} of {comparison.weights.tensors}: {names}{more}")
        )
    return rows


def _or_end(token: int | None) -> str:
    return "the end" if token is None else str(token)


def field_text(item: FieldDifference) -> str:
    """Return both values; of two lists only what the other lacks."""
    ours, theirs = item.expected, item.found
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        missing, added = ([str(x) for x in a if x not in b] for a, b in ((ours, theirs), (theirs, ours)))
        return f"missing {' '.join(missing) or 'nothing'}, added {' '.join(added) or 'nothing'}"
    return f"expected {ours}, found {theirs}"


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def seen_percent(change: float) -> str:
    """Return a change that is seen, never a smaller one that is not."""
    exact = Decimal(100) * Decimal(change)
    return f"{exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), ROUND_CEILING).normalize():f} %"
