"""An image among blobs: its documents and its layers, each proved by its digest, whoever keeps it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from repro_image.adapters.engine import Engine, ImageInfo
from repro_image.adapters.image_blobs import Blobs, open_engine
from repro_image.adapters.layer_archive import read_headers, read_layer
from repro_image.core.image_files import Layer
from repro_image.core.image_manifest import ImageDocuments, parse_document, parse_documents
from repro_image.core.oci import Descriptor, Index, Manifest
from repro_image.core.reference import sha256_digest
from repro_image.errors import BrokenImageError, WhichImageError


def read_documents(blobs: Blobs, wanted: str | None = None) -> ImageDocuments:
    """Return what the image among ``blobs`` says of itself, each document proved by its digest.

    wanted: digest of its manifest, its config or the index that lists it; needed where there are several.
    Raises: BrokenImageError, WhichImageError.
    """
    found = list(_images(blobs, blobs.index(), above=(), wanted=wanted))
    if len(found) != 1:
        known = found or list(_images(blobs, blobs.index(), above=(), wanted=None))
        raise WhichImageError(blobs.name, known=tuple(image.digest for image in known))
    return found[0]


def config_digest(engine: Engine, image: ImageInfo) -> str:
    """Return the config digest of an image of the engine, which the engine itself does not tell.

    Milliseconds where the store can be read; else ``docker save``, half a minute for 2.5 GB: ask the ledger
    for the manifest digest first.
    """
    return read_documents(open_engine(engine, image, name=image.id)).manifest.config.digest


def _images(
    blobs: Blobs, index: bytes, *, above: tuple[str, ...], wanted: str | None
) -> Iterator[ImageDocuments]:
    """Yield the images that an index lists; those of other platforms are often not at hand."""
    for descriptor in parse_document(index, Index, name=blobs.name, what="index").manifests:
        data = None if descriptor.is_attestation else blobs.small(descriptor.digest)
        if data is None:
            continue
        _prove(blobs, descriptor, data)
        names = (*above, descriptor.digest)
        fields = parse_document(data, dict[str, Any], name=blobs.name, what="manifest")
        if "manifests" in fields and "layers" in fields:  # two readers would take two images for one digest
            told = f"{descriptor.digest} can be read as a manifest and as an index"
            raise BrokenImageError(told, image=blobs.name)
        if "manifests" in fields:
            yield from _images(blobs, data, above=names, wanted=wanted)
            continue
        image = _image(blobs, descriptor.digest, data)
        if wanted is None or wanted in (*names, image.manifest.config.digest):
            yield image


def _image(blobs: Blobs, digest: str, manifest: bytes) -> ImageDocuments:
    config = parse_document(manifest, Manifest, name=blobs.name, what="manifest").config
    data = blobs.small(config.digest)
    if data is None:
        raise BrokenImageError(f"its config {config.digest} is missing", image=blobs.name)
    _prove(blobs, config, data)
    return parse_documents(blobs.name, digest, manifest, data)


def read_layers(
    blobs: Blobs,
    documents: ImageDocuments,
    known: Mapping[str, Layer],
    *,
    contents: bool,
    on_layer: Callable[[str], None],
) -> dict[str, Layer]:
    """Return ``known`` and, by diff ID, the image's other layers; each is read once.

    contents: whether files are hashed and the layers' digests proved; without, names and sizes are enough.
    on_layer: called with the digest of each blob before it is read.
    """
    wanted = {
        layer.digest: diff_id
        for layer, diff_id in zip(documents.manifest.layers, documents.diff_ids, strict=True)
        if diff_id not in known
    }
    layers = dict(known)
    for digest, stream in blobs.streams(wanted):
        on_layer(digest)
        if contents:
            layer = read_layer(stream, digest=digest, image=blobs.name)
        else:
            layer = read_headers(stream, diff_id=wanted[digest], image=blobs.name)
        layers[layer.diff_id] = layer
    missing = [diff_id for diff_id in documents.diff_ids if diff_id not in layers]
    if missing:
        raise BrokenImageError(f"the layer with diff ID {missing[0]} is missing", image=blobs.name)
    return layers


def _prove(blobs: Blobs, descriptor: Descriptor, data: bytes) -> None:
    found = sha256_digest(data)
    if found != descriptor.digest:
        raise BrokenImageError(f"the content of blob {descriptor.digest} is {found}", image=blobs.name)
