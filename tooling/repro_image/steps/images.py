"""Read the layers of an image and tell what they are made of."""

from repro_image.core.image_contents import ImageContents, image_contents
from repro_image.core.reporter import Reporter
from repro_image.steps.diff import FoundImage, read_all_layers


def show_image(image: FoundImage, origin: FoundImage | None, *, reporter: Reporter) -> ImageContents:
    """Return the layers of ``image``; every one of them is read, for its packages.

    origin: the image that a machine moves from.
    """
    layers = read_all_layers(image, {}, contents=False, reporter=reporter)
    return image_contents(image.documents, layers, origin=origin.documents if origin else None)
