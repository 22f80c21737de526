"""Comparison -> its figures beside their plots: rates of flips, sizes of the differences, margins."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from repro_image.core.across import floor_rate
from repro_image.core.comparison import Comparison
from repro_image.core.differences import Decade, Differences
from repro_image.core.epoch import NoiseFloor
from repro_image.core.transcript import MarginBin
from repro_image.reports.html_plots import axis_end, bar, interval
from repro_image.reports.phrases import rate_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Plotted:
    """A name with its figures as text and a plot of them."""

    name: str
    told: str
    plot: Markup


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    unit: str
    told: str
    bars: list[Plotted]


@dataclass(frozen=True, kw_only=True, slots=True)
class MarginRow:
    """One bin of margins: its recorded tokens, and those of them that flipped."""

    name: str
    tokens: Plotted
    flips: Plotted


def rate_rows(comparison: Comparison, floor: NoiseFloor | None) -> tuple[list[Plotted], float]:
    """Return the rates of flips, those of the noise floor last, and where their common axis ends."""
    rates = {
        "flipped tokens": comparison.flips,
        "flipped in replay": comparison.replay_flips,
        "noise floor": floor_rate(floor) if floor and comparison.flips else None,
        "rounding": floor_rate(floor.rounding) if floor and floor.rounding and comparison.flips else None,
    }
    there = {name: rate for name, rate in rates.items() if rate}
    end = axis_end([rate.high for rate in there.values()])
    rows = [
        Plotted(
            name=name,
            told=rate_text(rate),
            plot=interval(rate.low, rate.events / max(1, rate.trials), rate.high, end=end),
        )
        for name, rate in there.items()
    ]
    return rows, end


def histograms(differences: Differences | None) -> list[Histogram]:
    """Return how far the log-probabilities moved, in nats and in steps of the logits."""
    if differences is None or differences.median_nats is None or not differences.largest_nats:
        return []  # nothing was compared, or nothing moved
    sizes = f"median {differences.median_nats:.3g}, largest {differences.largest_nats:.3g}"
    return [
        Histogram(
            unit="nats",
            told=f"How far the log-probability of the chosen token moved: {sizes}.",
            bars=_bars(differences.decades),
        ),
        Histogram(
            unit="ulp",
            told=f"The same in steps of the logits: 1 ulp is {differences.ulp_nats:g} nats.",
            bars=_bars(differences.ulp_decades),
        ),
    ]


def _bars(rows: Sequence[Decade]) -> list[Plotted]:
    """Return a bar for every decade between the smallest and the largest, also for those without a token."""
    counts = {row.exponent: row.count for row in rows}
    exponents = [exponent for exponent in counts if exponent is not None]
    decades = range(min(exponents), max(exponents) + 1) if exponents else ()
    largest = max(counts.values(), default=1)
    return [
        Plotted(
            name="exactly 0" if exponent is None else f"1e{exponent} to 1e{exponent + 1}",
            told=f"{counts.get(exponent, 0):,}",
            plot=bar(counts.get(exponent, 0) / largest, "tokens"),
        )
        for exponent in (None, *decades)
    ]


def margin_rows(bins: Sequence[MarginBin]) -> list[MarginRow]:
    """Return the recorded tokens by margin, and how many of each bin flipped, as shares of all of a kind."""
    tokens, flips = max((b.tokens for b in bins), default=0), max((b.flips for b in bins), default=0)
    return [
        MarginRow(
            name=_range(row.low, row.high),
            tokens=_plotted(row.tokens, tokens, "tokens"),
            flips=_plotted(row.flips, flips, "differs"),
        )
        for row in bins
    ]


def _plotted(number: int, largest: int, kind: str) -> Plotted:
    return Plotted(name=kind, told=f"{number:,}", plot=bar(number / max(1, largest), kind))


def _range(low: float, high: float | None) -> str:
    if high is None:
        return f"{low:g} and more"
    return "0, a tie" if high == 0 else f"{low:g} to {high:g}"
