"""Tell which locks of an image are stale. Reads the project's files only: `lock --check` is asked often."""

from collections.abc import Iterator

from repro_image.adapters.files import MODEL, REQUIREMENTS, Project
from repro_image.adapters.gguf_model import CONVERTER
from repro_image.core.inputs import base_inputs, model_inputs, requirements_inputs
from repro_image.core.lockfile import RequirementsLock
from repro_image.errors import ProjectError, StaleLockError

RESOLVER_NAMES = ("pip-tools", "uv")  # the first is the default


def check_locks(project: Project, name: str) -> tuple[ProjectError, ...]:
    """Return what is wrong with an image's locks: missing, edited, malformed, stale. Needs no network."""
    return tuple(_faults(project, name))


def require_fresh_locks(project: Project, name: str) -> None:
    """Raise the first of check_locks."""
    for fault in _faults(project, name):
        raise fault


def resolver_of(lock: RequirementsLock | None) -> str:
    """Return the name of the resolver that made ``lock``, the default for none and for an unknown one."""
    name = lock.resolver.partition(" ")[0] if lock else ""
    return name if name in RESOLVER_NAMES else RESOLVER_NAMES[0]


def python_inputs(project: Project, name: str, *, resolver: str, root: str) -> str:
    """Return the digest of what an image's requirements.txt is made from."""
    return requirements_inputs(
        project.requirements(name), project.image(name).python, resolver=resolver, root=root
    )


def _faults(project: Project, name: str) -> Iterator[ProjectError]:
    image = project.image(name)
    root: str | None = None
    try:
        base = project.base_lock(name)
        root = base.root
        yield from _stale(
            base.inputs, base_inputs(image.base), project.base_file(name), "base in image.toml", name
        )
    except ProjectError as error:
        yield error
    try:
        lock = project.requirements_lock(name)
        inputs = python_inputs(project, name, resolver=resolver_of(lock), root=root or lock.root)
        yield from _stale(lock.inputs, inputs, REQUIREMENTS, "requirements, python or base", name)
    except ProjectError as error:
        yield error
    try:
        model = project.model_lock(name)
        inputs = model_inputs(image.model, converter=CONVERTER)
        yield from _stale(model.inputs, inputs, MODEL, "model in image.toml or the converter", name)
    except ProjectError as error:
        yield error


def _stale(found: str, expected: str, file: str, what: str, image: str) -> Iterator[ProjectError]:
    if found != expected:
        yield StaleLockError(f"locks/{image}/{file}", reason=f"{what} changed since", image=image)
