"""Resolve an image's requirements and base into its three locks."""

import importlib.metadata
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from packaging.specifiers import SpecifierSet

from repro_image.adapters.downloads import in_parallel
from repro_image.adapters.engine import Engine
from repro_image.adapters.files import BASE, DEBIAN, MODEL, REQUIREMENTS, Project
from repro_image.adapters.package_index import INDEX, PackageIndex, links_page, open_package_index
from repro_image.adapters.resolvers import RESOLVERS, Interpreter, ResolveRequest, read_interpreter
from repro_image.adapters.store import Store
from repro_image.core.lockfile import (
    BaseLock,
    DebianLock,
    LockedWheel,
    RequirementsLock,
    print_json_lock,
    print_requirements,
)
from repro_image.core.project import ImageSpec
from repro_image.core.reporter import Reporter
from repro_image.core.wishes import Wish, parse_wishes
from repro_image.errors import BasePythonError, NotLockedError, ProjectError
from repro_image.steps.base import BaseJob, lock_base, root_image
from repro_image.steps.fresh import python_inputs, resolver_of
from repro_image.steps.lock_model import lock_model

_PAGE_THREADS = 8

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Locked:
    """What a lock did. changed: files below locks/<image>/ that are new or different."""

    image: str
    changed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One image being locked, and what that needs."""

    project: Project
    name: str
    image: ImageSpec
    store: Store
    engine: Engine
    reporter: Reporter
    index: PackageIndex
    resolver: str
    upgrade: bool
    upgrade_packages: tuple[str, ...]
    wishes: tuple[Wish, ...] = field(default=())

    @property
    def base(self) -> BaseJob:
        return BaseJob(
            project=self.project,
            name=self.name,
            store=self.store,
            engine=self.engine,
            web=self.index.web,
            reporter=self.reporter,
            upgrade=self.upgrade,
        )

    @property
    def path(self) -> str:
        return f"requirements/{self.name}.in"


def lock_image(
    project: Project,
    name: str,
    *,
    store: Store,
    engine: Engine,
    reporter: Reporter,
    resolver: str | None = None,
    upgrade: bool = False,
    upgrade_packages: Sequence[str] = (),
    index: PackageIndex | None = None,
) -> Locked:
    """Make those locks of one image again whose inputs changed; all are written at the end, or none.

    resolver:         ``pip-tools`` or ``uv``; None: the one of the lock, else pip-tools.
    upgrade:          take the newest packages, wheels and versions that the wishes allow.
    upgrade_packages: names of locked packages that may move; the others keep their pins where they can.
    Raises: every ReproImageError; the old locks are kept then.
    """
    image = project.image(name)
    wishes = parse_wishes(project.requirements(name), path=f"requirements/{name}.in")
    old = _read(lambda: project.requirements_lock(name))
    _require_locked(upgrade_packages, old, image=name)
    job = _Job(
        project=project,
        name=name,
        image=image,
        store=store,
        engine=engine,
        reporter=reporter,
        index=index or open_package_index(project.settings),
        resolver=resolver or resolver_of(old),
        upgrade=upgrade,
        upgrade_packages=tuple(upgrade_packages),
        wishes=wishes,
    )
    base = lock_base(job.base, _read(lambda: project.base_lock(name)))
    requirements = _lock_requirements(job, old, base)
    model = lock_model(
        image.model,
        _read(lambda: project.model_lock(name)),
        image=name,
        upgrade=upgrade,
        index=job.index,
        store=store,
        reporter=reporter,
    )
    texts = {
        project.base_file(name): print_json_lock(base),
        REQUIREMENTS: print_requirements(requirements),
        MODEL: print_json_lock(model),
    }
    changed = [file for file, text in texts.items() if project.write_lock(name, file, text)]
    changed += [file for file in (DEBIAN, BASE) if file not in texts and project.remove_lock(name, file)]
    return Locked(image=name, changed=tuple(changed))


def _read(read: Callable[[], T]) -> T | None:
    """Return a lock, or None for one that is missing or broken and will be made anew."""
    try:
        return read()
    except ProjectError:
        return None


def _require_locked(packages: Sequence[str], lock: RequirementsLock | None, *, image: str) -> None:
    known = {wheel.name for wheel in lock.wheels} if lock else set()
    for package in packages:
        if package not in known:
            raise NotLockedError(package, image=image)


def _lock_requirements(
    job: _Job, old: RequirementsLock | None, base: DebianLock | BaseLock
) -> RequirementsLock:
    inputs = python_inputs(job.project, job.name, resolver=job.resolver, root=base.root)
    if old is not None and old.inputs == inputs and not job.upgrade and not job.upgrade_packages:
        return old
    root = root_image(job.base, base)
    python = read_interpreter(job.engine, root)
    if not python.version.startswith(f"{job.image.python.version}."):
        raise BasePythonError(job.name, wanted=job.image.python.version, found=python.version)
    resolver = RESOLVERS[job.resolver](job.engine, job.index.web.settings)
    job.reporter.status(f"resolving Python packages with {resolver.identity}")
    request = ResolveRequest(
        path=job.path,
        requirements=tuple(wish.text for wish in job.wishes),
        excluded=tuple(sorted(job.image.python.excluded)),
        pins={} if old is None or job.upgrade else {wheel.name: wheel.version for wheel in old.wheels},
        upgrade_packages=job.upgrade_packages,
        links=_mapped_links(job, python),
    )
    with job.store.workspace() as folder:
        pins = resolver.resolve(root, request, workspace=folder)
    job.reporter.line(f"resolved {len(pins)} Python packages with {resolver.identity}")
    return RequirementsLock(
        inputs=inputs,
        resolver=resolver.identity,
        python=python.version,
        root=base.root,
        installer=_installer(job, old, python),
        wheels=_choose(job, pins, old, python),
    )


def _mapped_links(job: _Job, python: Interpreter) -> str | None:
    """Return a page of the wheels of mapped projects, which pip's own configuration may not know.

    Where find-links of this machine has a wheel that fits, the named index is not asked.
    """
    wanted = {wish.name: wish.specifier for wish in job.wishes}
    files = []
    for project, source in sorted(job.image.python.sources.items()):
        if not job.index.has_linked(project, wanted.get(project, SpecifierSet()), tags=python.tags):
            files += [file for group in job.index.groups(project, source=source) for file in group]
    return links_page(files) if files else None


def _choose(
    job: _Job, pins: dict[str, str], old: RequirementsLock | None, python: Interpreter
) -> tuple[LockedWheel, ...]:
    """Return the wheel of each pin, sorted by name; unless upgrading, pins that stayed keep their wheel."""
    keeps_wheels = old is not None and not job.upgrade and old.python == python.version
    kept = {(w.name, w.version, w.source): w for w in old.wheels} if old is not None and keeps_wheels else {}
    found: dict[str, LockedWheel] = {}
    lock = threading.Lock()

    def choose(name: str) -> None:
        source = job.image.python.sources.get(name, INDEX)
        wheel = kept.get((name, pins[name], source))
        if wheel is None:
            wheel = job.index.choose(name, pins[name], tags=python.tags, source=source)
        with lock:
            found[name] = wheel
            job.reporter.status(f"choosing wheels: {len(found)} of {len(pins)}")

    in_parallel(choose, sorted(pins), stop=job.index.web.stop, threads=_PAGE_THREADS)
    job.reporter.line(f"chose {len(found)} wheels by hash")
    return tuple(found[name] for name in sorted(found))


def _installer(job: _Job, old: RequirementsLock | None, python: Interpreter) -> LockedWheel:
    """Return the wheel of uv, in the version that is installed beside this tool."""
    version = importlib.metadata.version("uv")
    if old is not None and old.installer.version == version and not job.upgrade:
        return old.installer
    return job.index.choose("uv", version, tags=python.tags)
