"""How far a transfer is, as text for a status line."""

import threading
from collections.abc import Callable
from time import monotonic

_STATUS_EVERY_S = 0.2
_BAR = 24


class Meter:
    """A progress bar as text; add() may be called from any thread."""

    def __init__(self, what: str, total_bytes: int, show: Callable[[str], None]) -> None:
        self._what, self._total, self._show = what, total_bytes, show
        self._done, self._shown_at, self._began = 0, 0.0, monotonic()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = monotonic()
            if now - self._shown_at < _STATUS_EVERY_S:
                return
            self._shown_at = now
            self._show(self._text(now - self._began))

    def _text(self, seconds: float) -> str:
        share = min(1.0, self._done / self._total) if self._total else 1.0
        bar = "█" * round(share * _BAR) + "·" * (_BAR - round(share * _BAR))
        rate = self._done / 1e6 / seconds if seconds > 0 else 0.0
        amount = f"{megabytes(self._done)} of {megabytes(self._total)} MB"
        return f"{self._what} {bar} {share:4.0%}  {amount}, {rate:.0f} MB/s"


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f}" if count >= 1e7 else f"{count / 1e6:.1f}"
