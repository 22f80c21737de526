"""Serving -> text, JSON (data/serving.schema.json), JUnit XML and Markdown: a table of streams by level."""

from collections.abc import Mapping
from typing import Any, Literal
from xml.etree.ElementTree import Element, SubElement

import click
import msgspec

from repro_image.core.golden import LEVELS
from repro_image.core.serving import LoadRow, Serving, ServingVerdict
from repro_image.reports.escape import visible
from repro_image.reports.json_report import schema_of, sorted_json
from repro_image.reports.junit import junit_document
from repro_image.reports.markdown import folded
from repro_image.reports.text import aligned, row_lines

_COLOURS = {
    ServingVerdict.MATCH: "green",
    ServingVerdict.MISMATCH: "red",
    ServingVerdict.MEASURED: "yellow",
}
_HEADS = ("streams", "in flight", *(f"{level} equal" for level in LEVELS), "flipped tokens", "seconds")


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
    cells = [_HEADS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADS))]
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


def serving_junit(serving: Serving, *, context: Mapping[str, str]) -> str:
    """Return the XML document: one testcase per load, which fails where its answers had to be equal."""
    cases = [_load_case(row, is_failure=serving.verdict is ServingVerdict.MISMATCH) for row in serving.rows]
    return junit_document(cases, context=context, told=serving_text(serving, context=context))


def _load_case(row: LoadRow, *, is_failure: bool) -> Element:
    case = Element("testcase", classname="repro-image.serving", name=f"beside {row.streams} streams")
    if not row.agrees:
        levels = ", ".join(str(level.level) for level in row.levels if not level.equal)
        told = "\n".join(row_lines(row.first)) if row.first else ""
        if is_failure:
            SubElement(case, "failure", type="mismatch", message=f"{levels} differ").text = told
        else:
            SubElement(case, "system-out").text = f"{levels} differ\n{told}"
    return case


def serving_markdown(serving: Serving, *, context: Mapping[str, str]) -> str:
    """Return the report for a job's summary; ends in a newline."""
    lines = [_HEADS, ("---:",) * len(_HEADS), *(_cells(row) for row in serving.rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    told = folded(serving_text(serving, context=context), is_open=serving.verdict is not ServingVerdict.MATCH)
    return "\n\n".join([f"### {serving.verdict}", table, told]) + "\n"


def serving_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the document."""
    return schema_of(ServingDocument, title="repro-image verify --serve")
