"""What an image starts from, of either kind: lock it, and hand it to a resolver or a build."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repro_image.adapters.base_image import read_system, require_mount_points
from repro_image.adapters.buildx import build_image
from repro_image.adapters.contexts import lay_out_debs
from repro_image.adapters.debian import ResolvedDebs, resolve_debs, resolve_debs_on
from repro_image.adapters.engine import ROOT_REPOSITORY, Engine
from repro_image.adapters.files import Project
from repro_image.adapters.registry import ResolvedImage, resolve_image
from repro_image.adapters.store import Store
from repro_image.adapters.web import Web
from repro_image.core.dockerfile import TEMPLATE, render_root
from repro_image.core.inputs import base_inputs
from repro_image.core.lockfile import BaseLock, DebianLock, Distribution, LockedDeb
from repro_image.core.project import DebianBase, RegistryBase
from repro_image.core.reporter import Reporter
from repro_image.errors import UnsuitableBaseError
from repro_image.steps.fetch import fetch_base, fetch_debs, make_root_in

_LOCAL = "docker-image://"


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseJob:
    """The base of one image, and what working on it needs."""

    project: Project
    name: str
    store: Store
    engine: Engine
    web: Web
    reporter: Reporter
    upgrade: bool


def lock_base(job: BaseJob, old: DebianLock | BaseLock | None) -> DebianLock | BaseLock:
    """Return the base's lock: ``old`` while nothing that it was made from changed, unless upgrading.

    What is new is then at hand: packages and root in the store, an image of a registry in the engine's.
    """
    base = job.project.image(job.name).base
    if old is not None and old.inputs == base_inputs(base) and not job.upgrade:
        return old
    if isinstance(base, DebianBase):
        return _lock_debian(job, base, old if isinstance(old, DebianLock) else None)
    return _lock_registry(job, base, old if isinstance(old, BaseLock) else None)


def _lock_debian(job: BaseJob, base: DebianBase, old: DebianLock | None) -> DebianLock:
    job.reporter.status("resolving Debian packages")
    with job.store.workspace() as folder:
        resolved = resolve_debs(base, settings=job.project.settings, workspace=folder)
    job.reporter.line(f"resolved {len(resolved.packages)} Debian packages")
    moment = resolved.source_date_epoch
    if old is not None and old.packages == resolved.packages:
        moment = old.source_date_epoch  # a newer Release file alone is no reason for a new root
    _fetch_debs(job, resolved.packages)
    root = make_root_in(job.store, resolved.packages, source_date_epoch=moment, reporter=job.reporter)
    return DebianLock(
        inputs=base_inputs(base),
        suite=base.suite,
        source_date_epoch=moment,
        root=root,
        packages=resolved.packages,
    )


def _fetch_debs(job: BaseJob, debs: Sequence[LockedDeb], distribution: Distribution = "debian") -> None:
    fetch_debs(
        debs,
        image=job.name,
        settings=job.project.settings,
        store=job.store,
        web=job.web,
        reporter=job.reporter,
        distribution=distribution,
    )


def _lock_registry(job: BaseJob, base: RegistryBase, old: BaseLock | None) -> BaseLock:
    found = _resolve(job, base, old)
    pulled = f"{base.reference.rpartition(':')[0]}@{found.manifest}"
    job.engine.ensure_pulled(pulled, reporter=job.reporter)
    debs = ResolvedDebs(packages=(), source_date_epoch=0)
    with job.store.workspace() as folder:
        system = read_system(pulled, workspace=folder)
        require_mount_points(job.engine, pulled)
        if base.packages:
            job.reporter.status(f"resolving packages of {system.distribution} {system.suite}")
            debs = resolve_debs_on(system, base.packages, settings=job.project.settings, workspace=folder)
    job.reporter.line(f"resolved {len(debs.packages)} packages on top of the base")
    moment = max(found.config.created_s, debs.source_date_epoch)
    if old is not None and (old.manifest, old.packages) == (found.manifest, debs.packages):
        moment = old.source_date_epoch
    lock = BaseLock(
        inputs=base_inputs(base),
        reference=base.reference,
        index=found.index,
        manifest=found.manifest,
        config=found.config_id,
        distribution=system.distribution,
        installed_libc6=system.libc6,
        source_date_epoch=moment,
        packages=debs.packages,
    )
    _fetch_debs(job, lock.packages, lock.distribution)
    return lock


def _resolve(job: BaseJob, base: RegistryBase, old: BaseLock | None) -> ResolvedImage:
    """Return what the reference names now. Unless upgrading, other packages alone do not move its digest."""
    kept = old if old is not None and old.reference == base.reference and not job.upgrade else None
    job.reporter.status(f"asking the registry for {base.reference}")
    found = resolve_image(
        base.reference,
        platform=job.project.image(job.name).platform,
        addresses=job.engine.registry_addresses(base.reference.partition("/")[0]),
        web=job.web,
        digest=(kept.index or kept.manifest) if kept else None,
    )
    if found.config.config is not None and found.config.config.on_build:
        raise UnsuitableBaseError(base.reference, reason="it has ONBUILD steps, which no lock names")
    job.reporter.line(f"resolved {base.reference} to {found.manifest}")
    return found


def root_image(job: BaseJob, lock: DebianLock | BaseLock) -> str:
    """Return the name of an image of the stage `root`, after making it where it is missing."""
    fetch_base(
        lock,
        image=job.name,
        settings=job.project.settings,
        store=job.store,
        engine=job.engine,
        web=job.web,
        reporter=job.reporter,
    )
    with job.store.workspace() as folder:
        contexts = base_contexts(lock, folder, store=job.store, engine=job.engine)
        if isinstance(lock, DebianLock):
            return contexts["base"].removeprefix(_LOCAL)
        name = f"{ROOT_REPOSITORY}:{lock.root.removeprefix('sha256:')[:16]}"
        templates, path = job.project.templates(job.name), f"images/{job.name}/{TEMPLATE}"
        dockerfile = folder / "Dockerfile"
        dockerfile.write_text(render_root(templates, lock, path=path))
        build_image(
            dockerfile,
            name=name,
            contexts=contexts,
            source_date_epoch=lock.source_date_epoch,
            reporter=job.reporter,
        )
    return name


def base_contexts(
    lock: DebianLock | BaseLock, folder: Path, *, store: Store, engine: Engine
) -> dict[str, str]:
    """Return the build contexts that the stage `root` is made from, laid out below ``folder``."""
    if isinstance(lock, DebianLock):
        root = engine.ensure_root(lock.root, store.path(lock.root), created_s=lock.source_date_epoch)
        return {"base": f"{_LOCAL}{root}"}
    debs = lay_out_debs(folder, lock.packages, store=store) if lock.packages else {}
    return {**debs, lock.pinned: f"{_LOCAL}{engine.local_base(lock.pulled)}"}
