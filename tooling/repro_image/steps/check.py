"""Hold the constraints of images against their locks and a machine."""

from collections.abc import Sequence

import msgspec

from repro_image.adapters.engine import Engine
from repro_image.adapters.files import Project
from repro_image.adapters.shipped import compatibility_tables
from repro_image.core.constraints import check_constraints, foreign_findings
from repro_image.core.finding import Finding
from repro_image.core.fingerprint import Host
from repro_image.core.image_labels import parse_demands
from repro_image.errors import ImageMissingError, MissingLockError


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
    image, tables = project.image(name), compatibility_tables()
    try:
        locks = project.locks(name)
    except MissingLockError:
        locks = None
    return CheckedImage(
        image=name, findings=check_constraints(image, locks, host, tables=tables, strict=strict)
    )


def check_reference(reference: str, *, engine: Engine, host: Host, strict: bool = False) -> CheckedImage:
    """Return the findings of an image of the local engine by what it says of itself; no project is needed.

    Raises: ImageMissingError; InvalidLabelsError.
    """
    found = engine.image(reference)
    if found is None:
        raise ImageMissingError(reference)
    demands = parse_demands(found.labels, reference=reference)
    environment = dict(_pair(line) for line in found.environment)
    findings = foreign_findings(demands, environment, host, compatibility_tables(), strict=strict)
    return CheckedImage(image=reference, findings=findings)


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    return name, value
