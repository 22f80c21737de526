"""Serving -> a text with a table of streams by level, and one JSON document (data/serving.schema.json)."""

from collections.abc import Mapping
from typing import Any, Literal

import click
import msgspec

from repro_image.core.golden import LEVELS
from repro_image.core.serving import LoadRow, Serving, ServingVerdict
from repro_image.reports.escape import visible
from repro_image.reports.json_report import schema_of, sorted_json
from repro_image.reports.text import aligned, row_lines

_COLOURS = {
    ServingVerdict.MATCH: "green",
    ServingVerdict.MISMATCH: "red",
    ServingVerdict.MEASURED: "yellow",
}


class ServingDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `verify --serve --json` prints. context: what was served, for readers."""

    format: Literal[1] = 1
    verdict: ServingVerdict
    exit_code: int
    detail: str
    context: dict[str, str]
    serving: Serving


def serving_text(serving: Serving, *, context: Mapping[str, str], colour: bool = False) -> str:
    """Return the report; ends in a newline. context, colour: as for ``text_report``."""
    verdict = str(serving.verdict)
    if colour:
        verdict = click.style(verdict, fg=_COLOURS[serving.verdict], bold=True)
    first = next((row.first for row in serving.rows if row.first), None)
    blocks = [
        [f"{verdict}: {visible(serving.detail)}"],
        aligned((name, visible(value)) for name, value in context.items()),
        _table(serving.rows),
        row_lines(first) if first else [],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _table(rows: tuple[LoadRow, ...]) -> list[str]:
    """Return one line per load: how many prompts are equal at each level."""
    heads = ("streams", "in flight", *(f"{level} equal" for level in LEVELS), "flipped tokens", "seconds")
    cells = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    return [
        "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        for line in cells
    ]


def _cells(row: LoadRow) -> tuple[str, ...]:
    return (
        str(row.streams),
        f"{row.in_flight:.1f}",
        *(f"{level.prompts - level.differing} of {level.prompts}" for level in row.levels),
        f"{row.flips.events} of {row.flips.trials}",
        f"{row.seconds:.1f}",
    )


def serving_json(serving: Serving, *, context: Mapping[str, str]) -> str:
    """Return the document, written as ``json_report`` writes its own; ends in a newline."""
    document = ServingDocument(
        verdict=serving.verdict,
        exit_code=serving.exit_code,
        detail=serving.detail,
        context=dict(context),
        serving=serving,
    )
    return sorted_json(document)


def serving_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the document."""
    return schema_of(ServingDocument, title="repro-image verify --serve")
