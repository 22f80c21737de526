"""Where the parts of images lie: OCI layouts in folders and tar files, and images of the engine.

Nothing is unpacked, and nothing is proved here: readers compare each blob with its digest.
"""

import contextlib
import json
import tarfile
from collections.abc import Collection, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from repro_image.adapters.engine import Engine, ImageInfo
from repro_image.adapters.layer_scan import BoundedMember, RefusedError
from repro_image.core.reference import is_digest
from repro_image.errors import BrokenImageError

MAX_DOCUMENT_BYTES = 4 * 2**20  # configs, manifests and indexes are a few KiB
_MAX_MEMBERS = 100_000

# Where containerd keeps blobs: below Docker's own folder, or in that of a containerd of the system.
_STORES = (
    "containerd/daemon/io.containerd.content.v1.content",
    "/var/lib/containerd/io.containerd.content.v1.content",
)


class Blobs(Protocol):
    """One place of blobs.

    index:   the OCI index that lists the images.
    small:   a document's bytes, unproved; None for one that is missing or too large to be a document.
    streams: the wanted blobs with their digests, in any order; each is read before the next is asked for.
    """

    name: str

    def index(self) -> bytes: ...

    def small(self, digest: str) -> bytes | None: ...

    def streams(self, wanted: Collection[str]) -> Iterator[tuple[str, BufferedReader]]: ...


class FolderBlobs:
    """An OCI layout folder, or a folder of blobs with an index that is told."""

    def __init__(self, folder: Path, *, name: str, index: bytes | None = None) -> None:
        self.name, self._folder, self._index = name, folder, index

    def index(self) -> bytes:
        return self._index if self._index is not None else _read_start(self._folder / "index.json", self.name)

    def small(self, digest: str) -> bytes | None:
        path = self._path(digest)
        if not path.is_file() or path.stat().st_size > MAX_DOCUMENT_BYTES:
            return None
        return _read_start(path, self.name)

    def streams(self, wanted: Collection[str]) -> Iterator[tuple[str, BufferedReader]]:
        for digest in wanted:
            path = self._path(digest)
            if path.is_file():  # a pipe would block
                with _unreadable(self.name), path.open("rb") as stream:
                    yield digest, stream

    def _path(self, digest: str) -> Path:
        return self._folder / "blobs/sha256" / digest.removeprefix("sha256:")


class TarBlobs:
    """An OCI layout as a plain tar file, as ``docker save`` and BuildKit write it."""

    def __init__(self, path: Path, *, name: str) -> None:
        self.name, self._path = name, path

    def index(self) -> bytes:
        with self._open() as archive:
            for member in _members(archive):
                if member.name == "index.json":
                    return _content(archive, member).read(MAX_DOCUMENT_BYTES)
        raise BrokenImageError("there is no index.json in it", image=self.name)

    def small(self, digest: str) -> bytes | None:
        with self._open() as archive:
            for member in _members(archive):
                if _blob_digest(member) == digest and member.size <= MAX_DOCUMENT_BYTES:
                    return _content(archive, member).read(MAX_DOCUMENT_BYTES)
        return None

    def streams(self, wanted: Collection[str]) -> Iterator[tuple[str, BufferedReader]]:
        with self._open() as archive:
            yield from _wanted(archive, wanted)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        with (
            _unreadable(self.name),
            tarfile.open(self._path, mode="r:", tarinfo=BoundedMember) as archive,
        ):
            yield archive


class SavedBlobs:
    """An image of the engine through ``docker save``: all of it streams past each time, 60 MB a second."""

    def __init__(self, engine: Engine, image: ImageInfo, *, name: str) -> None:
        self.name, self._engine, self._image = name, engine, image
        self._documents: Mapping[str, bytes] | None = None

    def index(self) -> bytes:
        return _index_of(self._image)

    def small(self, digest: str) -> bytes | None:
        if self._documents is None:
            with _unreadable(self.name), self._engine.saved(self._image.id) as archive:
                self._documents = {
                    blob: _content(archive, member).read()
                    for member in _members(archive)
                    if (blob := _blob_digest(member)) is not None and member.size <= MAX_DOCUMENT_BYTES
                }
        return self._documents.get(digest)

    def streams(self, wanted: Collection[str]) -> Iterator[tuple[str, BufferedReader]]:
        with _unreadable(self.name), self._engine.saved(self._image.id) as archive:
            yield from _wanted(archive, wanted)


def open_path(path: Path, *, name: str) -> Blobs:
    """Return the OCI layout at ``path``, a folder or a tar file."""
    return FolderBlobs(path, name=name) if path.is_dir() else TarBlobs(path, name=name)


def open_engine(engine: Engine, image: ImageInfo, *, name: str) -> Blobs:
    """Return an image of the engine: straight from its store where this user may read that, else through
    ``docker save``. The digests prove that it is the same.
    """
    for store in _STORES:
        folder = Path(engine.versions.data_root) / store
        with contextlib.suppress(OSError):
            blobs = FolderBlobs(folder, name=name, index=_index_of(image))
            if blobs.small(image.id) is not None:
                return blobs
    return SavedBlobs(engine, image, name=name)


def has_blob(engine: Engine, digest: str, size_bytes: int) -> bool:
    """Tell whether the engine's store has this blob, as far as this user may look into it."""
    for store in _STORES:
        path = Path(engine.versions.data_root) / store / "blobs/sha256" / digest.removeprefix("sha256:")
        with contextlib.suppress(OSError):
            if path.stat().st_size == size_bytes:
                return True
    return False


def _index_of(image: ImageInfo) -> bytes:
    return json.dumps({"manifests": [{"mediaType": "", "digest": image.id, "size": 0}]}).encode()


def _read_start(path: Path, name: str) -> bytes:
    with _unreadable(name), path.open("rb") as file:
        return file.read(MAX_DOCUMENT_BYTES)


@contextlib.contextmanager
def _unreadable(name: str) -> Iterator[None]:
    """Turn what opening and reading a file or an archive raises into BrokenImageError."""
    try:
        yield
    except (OSError, tarfile.TarError, RefusedError, RecursionError) as error:
        raise BrokenImageError(str(error), image=name) from error


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the plain files of an archive of blobs."""
    for _ in range(_MAX_MEMBERS):
        member = archive.next()
        if member is None:
            return
        archive.members.clear()  # type: ignore[attr-defined] # tarfile keeps them all
        if member.isreg() and not member.issparse():
            yield member
    raise RefusedError(f"it has more than {_MAX_MEMBERS} members")


def _blob_digest(member: tarfile.TarInfo) -> str | None:
    """Return the digest under which a member is stored; None for one that is no blob."""
    algorithm, _, name = member.name.removeprefix("./").removeprefix("blobs/").partition("/")
    digest = f"{algorithm}:{name}"
    return digest if is_digest(digest) else None


def _wanted(archive: tarfile.TarFile, wanted: Collection[str]) -> Iterator[tuple[str, BufferedReader]]:
    left = set(wanted)
    for member in _members(archive) if left else ():
        digest = _blob_digest(member)
        if digest in left:
            left.discard(digest)
            yield digest, _content(archive, member)
        if not left:
            return


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> BufferedReader:
    stream = archive.extractfile(member)
    assert isinstance(stream, BufferedReader)  # noqa: S101 - the member is a plain file
    return stream
