"""Markdown tables that show what others wrote and stay tables."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return the table; its cells are shown as they are, whatever is in them."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: str) -> str:
    """Return ``value`` as code: nothing in it can be a link, a mention, HTML or another column."""
    return f"`{visible(value).replace('`', chr(39)).replace('|', chr(92) + '|')}`" if value else ""


def visible(value: str) -> str:
    """Return ``value`` in one line: what does not print is a question mark."""
    return "".join(char if char.isprintable() else "?" for char in value)
