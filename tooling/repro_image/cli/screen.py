"""How progress looks: a status line that moves on a terminal, plain lines in a pipe. Everything goes to
stderr.
"""

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.status import Status

_PLAIN_EVERY_S = 10.0


class Screen:
    """A Reporter for people. Use it as a context manager, so that the status line ends with the work."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._last_status = self._begin
        self._live: Status | None = None

    def __enter__(self) -> "Screen":
        if sys.stderr.isatty():
            from rich.console import Console

            self._live = Console(stderr=True, highlight=False).status("starting", spinner="dots")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def line(self, text: str) -> None:
        """Print something that is done, with the seconds since the start."""
        stamped = f"{time.monotonic() - self._begin:7.1f} s  {printable(text)}"
        if self._live is not None:
            self._live.console.print(stamped, markup=False, soft_wrap=True)
        else:
            print(stamped, file=sys.stderr, flush=True)

    def status(self, text: str) -> None:
        """Show what is going on; in a pipe at most every ten seconds, so that logs stay short."""
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(printable(text)))
        elif time.monotonic() - self._last_status > _PLAIN_EVERY_S:
            self._last_status = time.monotonic()
            self.line(text)


def is_coloured() -> bool:
    """Return whether stdout takes colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def printable(text: str) -> str:
    """Return ``text`` with control characters escaped: a build step's or a model's output must not move the
    cursor.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
