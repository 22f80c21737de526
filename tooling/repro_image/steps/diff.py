"""Find two images, wherever they are, and tell everything that differs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from repro_image.adapters.engine import Engine
from repro_image.adapters.files import Project
from repro_image.adapters.image_archive import read_documents, read_layers
from repro_image.adapters.image_blobs import Blobs, open_engine, open_path
from repro_image.core.image_diff import ImageDifference, compare_images
from repro_image.core.image_files import Layer
from repro_image.core.image_manifest import ImageDocuments
from repro_image.core.reference import ImageReference, parse_reference
from repro_image.core.reporter import Reporter
from repro_image.errors import ImageMissingError
from repro_image.steps.epochs import find_one


class FoundImage(NamedTuple):
    """An image that can be read: what it says of itself, and where its blobs are."""

    documents: ImageDocuments
    blobs: Blobs


def find_image(text: str, *, engine: Callable[[], Engine], project: Callable[[], Project]) -> FoundImage:
    """Return the image that ``text`` names.

    text:    an OCI layout's folder or tar file, with ``@DIGEST`` where it holds several images; else an image
             of the engine: a reference, a digest, or the tag of an epoch.
    engine, project: only called where they are needed.
    Raises: InvalidReferenceError, ImageMissingError, UnknownEpochError, BrokenImageError, WhichImageError.
    """
    path, _, digest = text.partition("@")
    if path and _exists(path):
        blobs = open_path(Path(path), name=text)
        return FoundImage(read_documents(blobs, digest or None), blobs)
    reference = parse_reference(text)
    if reference.repository is None and reference.tag is not None:
        epoch = find_one(project(), project().images(), text).epoch
        reference = ImageReference(repository=epoch.repository, tag=epoch.tag)
    image = engine().image(str(reference))
    if image is None:
        raise ImageMissingError(str(reference))
    blobs = open_engine(engine(), image, name=str(reference))
    return FoundImage(read_documents(blobs), blobs)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # a name that is too long, or that holds a zero byte
        return False


def diff_images(
    a: FoundImage, b: FoundImage, *, ignore: Sequence[str], reporter: Reporter
) -> ImageDifference:
    """Return what differs from ``a`` to ``b``; layers are read only where the diff IDs differ, each once.

    ignore: globs over the paths of differences, which are left out.
    """
    layers: dict[str, Layer] = {}
    if a.documents.diff_ids != b.documents.diff_ids:
        for image in (a, b):
            layers = read_all_layers(image, layers, contents=True, reporter=reporter)
    return compare_images(a.documents, b.documents, layers, ignore=ignore)


def read_all_layers(
    image: FoundImage, known: dict[str, Layer], *, contents: bool, reporter: Reporter
) -> dict[str, Layer]:
    """Return the layers by diff ID, telling which one is being read."""
    documents = image.documents
    numbers = {layer.digest: number for number, layer in enumerate(documents.manifest.layers, start=1)}

    def tell(digest: str) -> None:
        reporter.status(f"{documents.name}: reading layer {numbers[digest]} of {len(numbers)}")

    return read_layers(image.blobs, documents, known, contents=contents, on_layer=tell)
