"""How steps tell what they are doing; the command line decides how it looks."""

from typing import Protocol


class Reporter(Protocol):
    """line: something that is done and stays on the screen; status: what is going on now, may be
    overwritten.
    """

    def line(self, text: str) -> None: ...

    def status(self, text: str) -> None: ...
