"""Numbers -> inline SVG. Shapes only: every figure stands beside its plot as text, for whoever sees none."""

import math
from collections.abc import Sequence

from markupsafe import Markup

_CURVE_WIDTH, _CURVE_HEIGHT = 1000, 100


def bar(share: float, kind: str) -> Markup:
    """Return a bar that fills ``share`` (0 to 1) of its cell. kind: CSS class."""
    return Markup(
        '<svg class="bar {}" aria-hidden="true"><rect width="{}%" height="100%" rx="2"></rect></svg>'
    ).format(kind, _number(100 * share))


def interval(low: float, middle: float, high: float, *, end: float) -> Markup:
    """Return an interval with its estimate on an axis from 0 to ``end``."""
    left, centre, right = (_number(100 * value / end) for value in (low, middle, high))
    return Markup(
        '<svg class="interval" aria-hidden="true">'
        '<line class="axis" x1="0" x2="100%" y1="50%" y2="50%"></line>'
        '<line class="span" x1="{}%" x2="{}%" y1="50%" y2="50%"></line>'
        '<circle cx="{}%" cy="50%" r="5"></circle></svg>'
    ).format(left, right, centre)


def axis_end(values: Sequence[float]) -> float:
    """Return a round number that no value exceeds; 1 where all are zero."""
    largest = max(values, default=0.0)
    if largest <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(largest))
    return next((step * unit for step in (1, 2, 5) if largest <= step * unit), 10 * unit)


def curve(values: Sequence[float], *, at: int) -> Markup:
    """Return a step line of ``values`` from 0 to the largest, with a mark at index ``at``.

    Values that are not finite leave a gap.
    """
    finite = [value for value in values if math.isfinite(value)]
    largest = max(finite, default=0.0) or 1.0
    step = _CURVE_WIDTH / max(1, len(values))
    points: list[str] = []
    pen = "M"
    for number, value in enumerate(values):
        if not math.isfinite(value):
            pen = "M"
            continue
        y = _number(_CURVE_HEIGHT * (1 - max(0.0, value) / largest))
        points.append(f"{pen}{_number(number * step)} {y}H{_number((number + 1) * step)}")
        pen = "L"
    return Markup(
        '<svg class="curve" viewBox="0 -4 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
        '<line class="here" x1="{here}" x2="{here}" y1="-4" y2="{height}"></line>'
        '<path d="{path}"></path></svg>'
    ).format(
        width=_CURVE_WIDTH,
        height=_CURVE_HEIGHT + 8,
        here=_number((at + 0.5) * step),
        path="".join(points),
    )


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
