"""Read the layers of an image and tell what they are made of."""

from collections.abc import Callable, Mapping
from typing import Any

from repro_image.adapters.files import Project
from repro_image.core.image_contents import ImageContents, image_contents
from repro_image.core.reporter import Reporter
from repro_image.errors import ProjectError
from repro_image.steps.diff import FoundImage, read_all_layers


def show_image(
    image: FoundImage, origin: FoundImage | None, *, project: Callable[[], Project], reporter: Reporter
) -> ImageContents:
    """Return the layers of ``image``; every one of them is read, for its packages.

    origin:  the image that a machine moves from.
    project: looked at for the image's budget; there need not be one.
    """
    layers = read_all_layers(image, {}, contents=False, reporter=reporter)
    return image_contents(
        image.documents,
        layers,
        origin=origin.documents if origin else None,
        budget_mib=_budget_mib(image.documents.config_fields, project),
    )


def _budget_mib(config: Mapping[str, Any], project: Callable[[], Project]) -> int | None:
    """Return the budget of the project's image that has this image's title."""
    labels = (config.get("config") or {}).get("Labels") or {}
    title = labels.get("org.opencontainers.image.title")
    try:
        found = project()
        return found.image(title).constraints.image_mib if title in found.images() else None
    except ProjectError:
        return None
