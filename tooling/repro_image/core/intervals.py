"""What a number of trials can tell: exact binomial intervals, and the smallest change that a golden sees."""

import math

from repro_image.core.epoch import Power

_STEPS = 60  # halvings of [0, 1]; 2**-60 is below what a double near 1 resolves
_TINY = 1e-300


def clopper_pearson(events: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval (low, high) of an event's probability after ``events`` in ``trials``.

    Without trials nothing is known: (0, 1).
    Source: Clopper and Pearson, Biometrika 26 (1934), in its form with the beta distribution.
    """
    if trials == 0:
        return 0.0, 1.0
    tail = (1 - confidence) / 2
    low = 0.0 if events == 0 else _beta_quantile(tail, events, trials - events + 1)
    high = 1.0 if events == trials else _beta_quantile(1 - tail, events + 1, trials - events)
    return low, high


def smallest_visible_change(trials: int, *, confidence: float = 0.99) -> float:
    """Return the smallest probability of a change per trial that ``trials`` see with ``confidence``."""
    return 1.0 if trials == 0 else -math.expm1(math.log1p(-confidence) / trials)


def needed_trials(change: float, *, confidence: float = 0.99) -> int:
    """Return how many trials see a change of probability ``change``, between 0 and 1, with ``confidence``."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-change))


def power(*, tokens: int, prompts: int, confidence: float = 0.99) -> Power:
    """Return the power of a golden of ``tokens`` compared tokens in ``prompts`` prompts."""
    sees = smallest_visible_change(tokens, confidence=confidence)
    return Power(tokens=tokens, prompts=prompts, confidence=confidence, sees_per_token=sees)


def _beta_quantile(probability: float, a: int, b: int) -> float:
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _incomplete_beta(a, b, middle) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _incomplete_beta(a: int, b: int, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), for 0 < x < 1."""
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side only
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) * _beta_fraction(a, b, x) / a


def _beta_fraction(a: int, b: int, x: float) -> float:
    """Return the continued fraction of I_x(a, b), by Lentz's method (DLMF 8.17.22)."""
    fraction, c, d = 1.0, 1.0, 0.0
    for step in range(10_000):  # about sqrt(max(a, b)) steps are needed
        m = step // 2
        if step == 0:
            numerator = 1.0
        elif step % 2:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / ((1.0 + numerator * d) or _TINY)
        c = (1.0 + numerator / c) or _TINY
        fraction *= c * d
        if abs(1.0 - c * d) < 1e-15:
            break
    return fraction - 1.0
