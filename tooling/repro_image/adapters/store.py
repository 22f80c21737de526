"""The content-addressed store: every file lies under its own sha256 and is either whole or not there.

<root>/sha256/<2 hex>/<62 hex>   files, mode 0644 whatever the umask
<root>/partial/<64 hex>          downloads that can be resumed
<root>/tmp/<random>/             workspaces of running commands
<root>/layers/<64 hex>           which of the files is which layer: kept_layers.py
<root>/locks/<name>              empty: locks between running commands
"""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from repro_image.core.reference import is_digest
from repro_image.errors import CorruptFileError, DiskFullError, MissingFileError, ReproImageError, StoreError

CHUNK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
# A link that the file system or the kernel refuses is no reason to fail: a copy does as well.
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES)


@contextmanager
def disk_errors(path: Path, *, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn the OSErrors of writing below ``path`` into DiskFullError and StoreError, which say what to do."""
    try:
        yield
    except ReproImageError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(str(path), needed_bytes=needed_bytes, free_bytes=_free_bytes(path)) from error
        raise StoreError(str(error.filename or path), reason=error.strerror or str(error)) from error


class Store:
    """Files by digest. Several processes may use one store at a time.

    root: its folder, made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def path(self, digest: str) -> Path:
        """Return where the file with this digest lies, whether it is there or not."""
        if not is_digest(digest):
            raise ValueError(f"not a digest: {digest!r}")
        hexes = digest.removeprefix("sha256:")
        return self.root / "sha256" / hexes[:2] / hexes[2:]

    def partial(self, digest: str) -> Path:
        """Return where an unfinished download of this digest lies; its folder exists."""
        self.path(digest)  # refuses what is no digest
        return self._folder("partial") / digest.removeprefix("sha256:")

    def has(self, digest: str, size_bytes: int) -> bool:
        """Tell whether a file of this digest's name and of this size is there; its content is not read."""
        try:
            return self.path(digest).stat().st_size == size_bytes
        except (FileNotFoundError, NotADirectoryError):
            return False

    def verify(self, digest: str) -> None:
        """Read the file and compare its digest. Raises: MissingFileError, CorruptFileError."""
        path = self.path(digest)
        try:
            found = hash_file(path)
        except FileNotFoundError as error:
            raise MissingFileError(digest, path=str(path)) from error
        if found != digest:
            raise CorruptFileError(str(path), expected=digest, found=found)

    def add(self, source: Path, digest: str | None = None) -> str:
        """Copy ``source`` into the store, hashing on the way; return its digest.

        digest: what it must be; None takes what it is.
        Raises: CorruptFileError, and then nothing was added; DiskFullError, StoreError.
        """
        size = source.stat().st_size
        with self.workspace() as folder, disk_errors(self.root, needed_bytes=size):
            copy = folder / "file"
            with source.open("rb") as reader, copy.open("wb") as writer:
                found = _copy(reader, writer)
            if digest is not None and found != digest:
                raise CorruptFileError(str(source), expected=digest, found=found)
            self.adopt(copy, found)
        return found

    def add_bytes(self, data: bytes, digest: str) -> None:
        """Write ``data``, which was hashed by the caller, to its place. Raises: DiskFullError, StoreError."""
        with self.workspace() as folder, disk_errors(self.root, needed_bytes=len(data)):
            file = folder / "file"
            file.write_bytes(data)
            self.adopt(file, digest)

    def adopt(self, file: Path, digest: str) -> None:
        """Move ``file``, which lies on the store's file system and was hashed by the caller, to its place.

        The file and its folder are on the disk before this returns, and readers see it whole or not at all.
        """
        target = self.path(digest)
        with disk_errors(target):
            self._folder("sha256", target.parent.name)
            file.chmod(0o644)
            _fsync(file)
            file.replace(target)
            _fsync(target.parent)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """Yield an empty folder on the store's file system; it is removed afterwards.

        What killed commands left behind is removed here as well: the kernel drops a dead holder's lock.
        """
        with disk_errors(self.root), self._sweeping():
            folder = Path(tempfile.mkdtemp(dir=self.root / "tmp", prefix="work."))
            folder.chmod(0o755)
            # What is made in it goes into layers, so its modes must not come from the folders above.
            with suppress(OSError):
                os.removexattr(folder, "system.posix_acl_default")
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            _remove(folder)
            os.close(handle)

    @contextmanager
    def locked(self, name: str, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Let one process at a time do what ``name`` stands for; the kernel ends the wait for a dead one.

        on_wait: called where another one is at it.
        """
        with disk_errors(self.root):
            handle = os.open(self._folder("locks") / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def lay_out(self, folder: Path, files: Mapping[str, str]) -> None:
        """Make ``folder`` hold the store's files under other names: hard links, copies where links cannot be.

        files: relative path -> digest.
        Raises: MissingFileError, DiskFullError, StoreError.
        """
        with disk_errors(folder):
            _make_folder(folder)
            for name, digest in sorted(files.items()):
                parts = PurePosixPath(name).parts
                if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
                    raise ValueError(f"not a relative path: {name!r}")
                for depth in range(1, len(parts)):
                    _make_folder(folder.joinpath(*parts[:depth]))
                self._link(digest, folder / name, name=name)

    def free_bytes(self) -> int:
        """Return how many bytes may still be written to the store's file system."""
        return _free_bytes(self.root)

    def _link(self, digest: str, target: Path, *, name: str) -> None:
        source = self.path(digest)
        try:
            target.hardlink_to(source)
        except FileNotFoundError as error:
            raise MissingFileError(name, path=str(source)) from error
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            shutil.copyfile(source, target)
            target.chmod(0o644)

    def _folder(self, *parts: str) -> Path:
        folder = self.root.joinpath(*parts)
        with disk_errors(folder):
            _make_folder(folder)
        return folder

    @contextmanager
    def _sweeping(self) -> Iterator[None]:
        """Remove leftovers, then hold the lock that keeps others from sweeping while a workspace is made."""
        tmp = self._folder("tmp")
        handle = os.open(tmp / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            for entry in tmp.iterdir():
                if entry.name != ".lock":
                    _remove_unless_held(entry)
            yield
        finally:
            os.close(handle)


def hash_file(path: Path) -> str:
    """Return ``sha256:<hex>`` of a file's content."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _copy(reader: BinaryIO, writer: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := reader.read(CHUNK_BYTES):
        digest.update(chunk)
        writer.write(chunk)
    return f"sha256:{digest.hexdigest()}"


def _make_folder(folder: Path) -> None:
    """Make ``folder`` and its parents; those made here are readable by all, whatever the umask."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with suppress(FileExistsError):
            path.mkdir()
            path.chmod(0o755)
    if missing and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _remove_unless_held(entry: Path) -> None:
    try:
        handle = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(entry)
    except BlockingIOError:
        return
    finally:
        os.close(handle)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
