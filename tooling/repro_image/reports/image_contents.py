"""The layers of an image as text, with what each is made of."""

from repro_image.core.image_contents import ImageContents, LayerRow, Move
from repro_image.reports.escape import visible
from repro_image.reports.tables import count, megabytes, table
from repro_image.reports.text import aligned

_MOST_PACKAGES = 5
_MOST_NUMBERS = 20


def contents_report(image: ImageContents) -> str:
    """Return the report; ends in a newline. Of many packages in a layer it names the first few."""
    size = f"{megabytes(image.size_bytes)} in {count(len(image.layers), 'layer')}"
    head = [
        ("config", image.config),
        ("manifest", image.manifest),
        ("size", f"{size}, stored in {megabytes(image.stored_bytes)}"),
    ]
    if image.budget_mib is not None:
        used = image.size_bytes / (image.budget_mib * 2**20)
        head.append(("budget", f"{used:.0%} of {image.budget_mib:,} MiB"))
    numbers = ("layer", "size", "stored", "files")
    blocks = [
        [visible(image.name), *aligned(head)],
        table((*numbers, "made of"), (_row(row) for row in image.layers), right=numbers),
        _move(image.move, of=len(image.layers)) if image.move else [],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _row(row: LayerRow) -> tuple[str, ...]:
    sizes = megabytes(row.size_bytes), megabytes(row.stored_bytes)
    return str(row.number), *sizes, f"{row.files:,}", _made_of(row)


def _made_of(row: LayerRow) -> str:
    """Return the packages of a layer, or the step that made it where it brings none."""
    if not row.packages:
        return row.created_by or "-"
    named = ", ".join(f"{package.name} {package.version}" for package in row.packages[:_MOST_PACKAGES])
    left = len(row.packages) - _MOST_PACKAGES
    return f"{named} and {left} more" if left > 0 else named


def _move(move: Move, *, of: int) -> list[str]:
    missing = f"{len(move.layers)} of {count(of, 'layer')}"
    numbers = ", ".join(str(number) for number in move.layers[:_MOST_NUMBERS])
    numbers += ", …" if len(move.layers) > _MOST_NUMBERS else ""
    sizes = f"{megabytes(move.stored_bytes)} as stored here, {megabytes(move.size_bytes)} unpacked"
    return [
        f"coming from {visible(move.origin)}: {missing} to get, {sizes}",
        *([f"  layers {numbers}"] if move.layers else []),
    ]
