"""What an image is made of, and what moving to it from another one downloads."""

from collections.abc import Mapping

import msgspec

from repro_image.core.image_files import Layer, Package, layer_packages
from repro_image.core.image_manifest import ImageDocuments


class LayerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One layer, counted from 1, bottom first.

    blob:         digest of the layer as it is stored.
    stored_bytes: of the blob; the same as ``size_bytes`` unless it is compressed.
    files:        entries of its archive.
    created_by:   the step that made it, as the image's history tells.
    """

    number: int
    diff_id: str
    blob: str
    size_bytes: int
    stored_bytes: int
    files: int
    packages: tuple[Package, ...]
    created_by: str


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine that has image ``origin`` has to get: the layers, by number, that this one lacks."""

    origin: str
    layers: tuple[int, ...]
    stored_bytes: int
    size_bytes: int


class ImageContents(msgspec.Struct, frozen=True, kw_only=True):
    """An image by layers.

    config:     the digest that is its identity.
    budget_mib: what image.toml allows it; None where there is no budget, or no project that knows the image.
    move:       None unless it was asked for.
    """

    name: str
    config: str
    manifest: str
    layers: tuple[LayerRow, ...]
    size_bytes: int
    stored_bytes: int
    budget_mib: int | None
    move: Move | None


def image_contents(
    image: ImageDocuments,
    by_diff_id: Mapping[str, Layer],
    *,
    origin: ImageDocuments | None,
    budget_mib: int | None,
) -> ImageContents:
    """Return the layers of ``image``. origin: the image that a machine moves from."""
    layers = [by_diff_id[diff_id] for diff_id in image.diff_ids]
    packages, steps = layer_packages(layers), image.config.layer_steps
    rows = tuple(
        LayerRow(
            number=number,
            diff_id=layer.diff_id,
            blob=stored.digest,
            size_bytes=layer.size_bytes,
            stored_bytes=stored.size,
            files=len(layer.entries),
            packages=packages[number - 1],
            created_by=steps[number - 1],
        )
        for number, (layer, stored) in enumerate(zip(layers, image.manifest.layers, strict=True), start=1)
    )
    return ImageContents(
        name=image.name,
        config=image.manifest.config.digest,
        manifest=image.digest,
        layers=rows,
        size_bytes=sum(row.size_bytes for row in rows),
        stored_bytes=sum(row.stored_bytes for row in rows),
        budget_mib=budget_mib,
        move=_move(rows, origin) if origin is not None else None,
    )


def _move(rows: tuple[LayerRow, ...], origin: ImageDocuments) -> Move:
    missing = [row for row in rows if row.diff_id not in origin.diff_ids]
    return Move(
        origin=origin.name,
        layers=tuple(row.number for row in missing),
        stored_bytes=sum(row.stored_bytes for row in missing),
        size_bytes=sum(row.size_bytes for row in missing),
    )
