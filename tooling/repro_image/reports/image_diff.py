"""What differs between two images as text: how much for which cause, what to change, and where."""

from collections.abc import Iterator, Sequence

import msgspec

from repro_image.core.image_diff import Difference, ImageDifference, Side
from repro_image.core.strict_json import readable_form
from repro_image.reports.escape import visible
from repro_image.reports.tables import count, table
from repro_image.reports.text import aligned

_MOST_ROWS = 100
_HEX = 12  # of a file's digest
_ROWS_AT_ONCE = 1000
_NO_ROWS = '"differences": []'


def diff_report(difference: ImageDifference) -> str:
    """Return the report; ends in a newline. Past the first hundred lines of differences it only counts."""
    sides = (("A", difference.a), ("B", difference.b))
    rows = difference.differences
    told = _told(rows)
    blocks = [
        [_headline(difference)],
        aligned((letter, visible(f"{side.name}  {side.config}")) for letter, side in sides),
        _fixes(rows),
        table(("cause", "layer", "path", "what"), told[:_MOST_ROWS]) if told else [],
        [f"and {len(told) - _MOST_ROWS:,} more; --json lists all"] if len(told) > _MOST_ROWS else [],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def difference_json(difference: ImageDifference) -> Iterator[str]:
    """Yield, in pieces, what ``readable_json`` makes of ``difference``: whole it can take half a gigabyte."""
    rows = difference.differences
    document = readable_form(msgspec.structs.replace(difference, differences=())).decode()
    head, _, tail = document.partition(_NO_ROWS)  # inside a text its quotes are escaped
    if not rows:
        yield document
        return
    yield head + _NO_ROWS[:-1]
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        told = (_indented(row) for row in rows[start : start + _ROWS_AT_ONCE])
        yield ("," if start else "") + ",".join(told)
    yield f"\n  ]{tail}"


def _indented(row: Difference) -> str:
    return ("\n" + readable_form(row).decode().rstrip("\n")).replace("\n", "\n    ")


def _headline(difference: ImageDifference) -> str:
    a, b = difference.a, difference.b
    ignored = f", {count(difference.ignored, 'difference')} ignored" if difference.ignored else ""
    if a.config == b.config:
        return f"equal: both have the config digest {a.config}{ignored}"
    if difference.equal:
        return f"equal but for what is ignored{ignored}"
    layers = f"{difference.same_layers} of {max(a.layers, b.layers)} layers the same"
    return f"different: {count(len(difference.differences), 'difference')}{ignored}; {layers}"


def _fixes(rows: Sequence[Difference]) -> list[str]:
    """Return how many differences each cause explains, most first, and what to change."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        counts[row.cause, row.fix] = counts.get((row.cause, row.fix), 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    cells = [(str(number), cause, fix) for (cause, fix), number in ordered]
    return table(("count", "cause", "what to change"), cells, right=("count",)) if cells else []


def _told(rows: Sequence[Difference]) -> list[tuple[str, str, str, str]]:
    """Return a line of cells for each row; what is below a folder of one side is only counted there."""
    lines: list[Difference] = []
    below: dict[str, int] = {}
    for row in rows:
        top = next((path for path in _above(row.path) if path in below), None) if _is_lone(row) else None
        if top is not None:
            below[top] += 1
            continue
        lines.append(row)
        if _is_lone(row):
            below[row.path] = 0
    return [_row(row, below=below.get(row.path, 0)) for row in lines]


def _is_lone(row: Difference) -> bool:
    return (row.a is None) != (row.b is None)


def _above(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _row(row: Difference, *, below: int) -> tuple[str, str, str, str]:
    numbers = [str(side.layer) for side in (row.a, row.b) if side is not None]
    more = f", with {below:,} more below it" if below else ""
    return row.cause, "/".join(dict.fromkeys(numbers)) or "-", row.path, _what(row) + more


def _what(row: Difference) -> str:
    changes = []
    if row.a is not None and row.b is not None:
        a, b = row.a, row.b
        changes = [f"{field} {_value(a, field)} -> {_value(b, field)}" for field in row.fields]
    return ", ".join([*([row.detail] if row.detail else []), *changes])


def _value(side: Side, field: str) -> str:
    value = getattr(side, field)
    return str(value)[:_HEX] if field == "sha256" else str(value)
