"""The numeric classes of an epoch side by side, and how far apart their answers are."""

from collections.abc import Sequence

from repro_image.core.classes import Apart
from repro_image.core.epoch import ClassGolden
from repro_image.core.fingerprint import CpuClass
from repro_image.reports.phrases import percent, rate_text, seen_percent
from repro_image.reports.tables import table

_HEX = 12
_NUMBERS = ("threads", "tokens", "sees", "flips", "median nats", "rounding")


def classes_report(goldens: Sequence[ClassGolden], pairs: Sequence[Apart]) -> str:
    """Return one table of the classes and, where there are several, one line or two for each pair of them."""
    lines = table(("class", "machine", *_NUMBERS), [_row(golden) for golden in goldens], right=_NUMBERS)
    lines += [
        "",
        "sees: the smallest per-token change that is found with 99 %; flips, median nats: by another order",
        "of work; rounding: median nats from float32 arithmetic",
    ]
    for pair in pairs:
        lines += ["", *_pair(pair)]
    return "\n".join(lines) + "\n"


def _row(golden: ClassGolden) -> tuple[str, ...]:
    numeric_class, floor = golden.fingerprint.numeric_class, golden.noise_floor
    return (
        _short(golden.numeric_class),
        numeric_class.machine,
        str(numeric_class.threads) if isinstance(numeric_class, CpuClass) else "-",
        str(golden.tokens),
        seen_percent(golden.power.sees_per_token) if golden.power else "-",
        percent(floor.flip_rate) if floor else "-",
        f"{floor.median_nats:.2g}" if floor else "-",
        f"{floor.rounding.median_nats:.2g}" if floor and floor.rounding else "-",
    )


def _pair(pair: Apart) -> list[str]:
    told = f"{pair.verdict} ({pair.reason})" if pair.reason else pair.verdict or "unknown"
    equal = [level for level, is_equal in pair.levels.items() if is_equal]
    lines = [
        f"{_short(pair.a)} and {_short(pair.b)} differ in {', '.join(pair.fields)}: {told}: {pair.detail}",
        f"  equal levels: {', '.join(equal) or 'none'}",
    ]
    if pair.flips:
        lines.append(f"  flipped in replay: {rate_text(pair.flips)}")
    if pair.median_nats is not None:
        lines.append(f"  log-probabilities: median {pair.median_nats:.3g} nats apart")
    return lines


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:_HEX]
