"""Text -> HTML that shows every character of it and obeys none."""

from itertools import groupby

from markupsafe import Markup, escape


def shown(text: str) -> Markup:
    """Return ``text`` in a direction of its own, with everything unprintable as a marked escape.

    The mark keeps a real control character apart from a model that wrote its escape. Lines still break.
    """
    parts = [
        str(escape("".join(run))) if is_printable else f"<i>{''.join(map(_escaped, run))}</i>"
        for is_printable, run in groupby(text, key=str.isprintable)
    ]
    return Markup(f"<bdi>{''.join(parts)}</bdi>")  # noqa: S704 - each part is escaped


def coded(sentence: str) -> Markup:
    """Return a sentence of ours with what stands in backquotes as code."""
    parts = sentence.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


def _escaped(char: str) -> str:
    """Return backslash, letters and digits, and after an escaped end of a line a real one."""
    return char.encode("unicode_escape").decode() + ("\n" if char == "\n" else "")
