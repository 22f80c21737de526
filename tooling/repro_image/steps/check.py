"""Hold the constraints of images against their locks and a machine."""

from collections.abc import Sequence

import msgspec

from repro_image.adapters.files import Project
from repro_image.core.constraints import Finding, check_constraints
from repro_image.core.fingerprint import Host
from repro_image.errors import MissingLockError


class CheckedImage(msgspec.Struct, frozen=True, kw_only=True):
    """One image with a finding for each rule."""

    image: str
    findings: tuple[Finding, ...]


def check_images(
    project: Project, names: Sequence[str], *, host: Host, strict: bool = False
) -> tuple[CheckedImage, ...]:
    """Return the findings of each image; one without locks is checked against the machine only.

    strict: what is unknown counts as an error.
    Raises: ProjectError for an invalid image.toml or lock.
    """
    return tuple(_check(project, name, host=host, strict=strict) for name in names)


def _check(project: Project, name: str, *, host: Host, strict: bool) -> CheckedImage:
    image = project.image(name)
    try:
        locks = project.locks(name)
    except MissingLockError:
        locks = None
    return CheckedImage(image=name, findings=check_constraints(image, locks, host, strict=strict))
