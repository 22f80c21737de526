"""Comparison -> the cards, rows and texts that the page's template places; it decides nothing itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from repro_image.core.differences import LevelRow, PromptRow, Token
from repro_image.core.golden import LEVELS
from repro_image.core.transcript import Transcript
from repro_image.reports.escape import quoted
from repro_image.reports.html_plots import bar, curve
from repro_image.reports.phrases import (
    LEVEL_NAMES,
    level_text,
    parting_text,
    token_text,
)

MAX_ROWS = 500
_MAX_CELL = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelCard:
    """One level over all prompts. bar: the share of prompts that differ."""

    level: str
    name: str
    equal: bool
    told: str
    bar: Markup


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One prompt in the table. cells: per level whether it is equal; tokens are texts, cut."""

    id: str
    tokens: int
    cells: tuple[bool, ...]
    where: str
    expected: str
    found: str


@dataclass(frozen=True, kw_only=True, slots=True)
class First:
    """Where the answers part first. sides: name and token; none where only bits differ."""

    id: str
    where: str
    sides: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Both answers to one prompt. curve: the recorded margins; curve_told: what they are, in words."""

    transcript: Transcript
    curve: Markup
    curve_told: str


def level_cards(levels: Sequence[LevelRow]) -> list[LevelCard]:
    return [
        LevelCard(
            level=row.level,
            name=LEVEL_NAMES[row.level],
            equal=row.equal,
            told=level_text(row),
            bar=bar(row.differing / max(1, row.prompts), "differs"),
        )
        for row in levels
    ]


def first_view(row: PromptRow | None) -> First | None:
    if row is None:
        return None
    parts = row.divergence
    sides = (("expected", parts.expected), ("found", parts.found)) if parts else ()
    return First(
        id=row.id,
        where=parting_text(row),
        sides=tuple((name, token_text(token)) for name, token in sides),
    )


def texts(transcripts: Sequence[Transcript]) -> list[Text]:
    return [
        Text(
            transcript=item,
            curve=curve(item.margins, at=item.position - item.left_out),
            curve_told=_curve_told(item),
        )
        for item in transcripts
    ]


def _curve_told(item: Transcript) -> str:
    finite = [margin for margin in item.margins if math.isfinite(margin)]
    if not finite:
        return ""
    here = item.margins[item.position - item.left_out :][:1]
    told = f"How sure the expected side was, token by token: its margin, 0 to {max(finite):.3g} nats"
    return told + (f"; the mark is token {item.position}, {here[0]:.3g} nats." if here else ".")


def prompt_rows(rows: Sequence[PromptRow]) -> tuple[list[Row], int]:
    """Return the table's rows, those that differ first where not all fit, and how many are left out."""
    shown = list(rows)
    if len(shown) > MAX_ROWS:
        shown = sorted(shown, key=lambda row: all(row.equal.values()))[:MAX_ROWS]
    return [_row(row) for row in shown], len(rows) - len(shown)


def _row(row: PromptRow) -> Row:
    parts = row.divergence
    if parts:
        where = f"token {parts.position}"
    elif row.first_bit_difference is not None:
        where = f"bits from token {row.first_bit_difference}"
    else:
        where = ""
    return Row(
        id=row.id,
        tokens=row.tokens,
        cells=tuple(row.equal[level] for level in LEVELS),
        where=where,
        expected=_cut(parts.expected) if parts else "",
        found=_cut(parts.found) if parts else "",
    )


def _cut(token: Token) -> str:
    if token.id is None:
        return "(end)"
    return quoted(token.text if len(token.text) <= _MAX_CELL else f"{token.text[:_MAX_CELL]}…")
