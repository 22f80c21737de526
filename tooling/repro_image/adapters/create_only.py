"""Files that are created once and never changed: whole or not at all, and still there after a power cut.

A file is written beside its place, synced, and then linked to its name: the kernel refuses the link where
the name is taken, and nobody ever sees half a file. Writers take turns by a lock that the kernel frees when
they die.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from repro_image.errors import AlreadyRecordedError, LedgerBusyError, LedgerDiskError

LOCK = ".lock"
TEMPORARY = ".new-"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_POLL_S = 0.05


def check_writable(folder: Path, *, name: str) -> None:
    """Prove by writing and removing a file that ``folder``, or the nearest folder above it, takes new files.

    name: the folder as errors name it. Raises: LedgerDiskError.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    probe = existing / f"{TEMPORARY}probe-{os.getpid()}"
    try:
        handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(handle, b"probe\n")
        finally:
            os.close(handle)
            probe.unlink()
    except OSError as error:
        raise LedgerDiskError(
            f"the folder cannot be written: {error.strerror}",
            path=name,
            fix="make the folder writable for this user, or its disk writable; nothing was started",
        ) from error


@contextmanager
def exclusive(folder: Path, *, name: str, timeout_s: float) -> Iterator[None]:
    """Hold the folder's writer lock. Makes the folder; removes what killed writers left.

    name: the folder as errors name it. Raises: LedgerBusyError naming the holder, LedgerDiskError.
    """
    with told(name, state="nothing was written"):
        _make_folder(folder)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        with told(name, state="nothing was written"):
            _wait_for(handle, name=name, timeout_s=timeout_s)
            _sign(handle)
            for leftover in folder.glob(f"{TEMPORARY}*"):
                leftover.unlink(missing_ok=True)
        yield
    finally:
        with suppress(OSError):  # closing frees the lock, whatever it answers
            os.close(handle)


def create(folder: Path, file: str, data: bytes, *, name: str) -> None:
    """Write ``data`` to ``folder/file``, which must not exist; readable by all, synced to the disk.

    Called with the folder's lock held. file: may lie in a folder of its own, which is made.
    Raises: AlreadyRecordedError, LedgerDiskError saying what is known of the file.
    """
    target, temporary = folder / file, folder / f"{TEMPORARY}{os.getpid()}"
    try:
        with told(f"{name}/{file}", state=f"nothing was written; {len(data):,} bytes are needed"):
            _write_synced(temporary, data)
            if target.parent != folder:
                _make_folder(target.parent)
        with told(f"{name}/{file}", state="the outcome is unknown: run `repro-image epochs check`"):
            _link(temporary, target, name=f"{name}/{file}")
            _sync_folder(target.parent)
    finally:
        with suppress(OSError):  # the next writer removes it
            temporary.unlink(missing_ok=True)


@contextmanager
def told(path: str, *, state: str) -> Iterator[None]:
    """Turn what the file system says into LedgerDiskError; ``state`` says what became of the file."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in _NO_SPACE else error.strerror or str(error)
        fix = {
            errno.EROFS: "make the file system writable",
            errno.EACCES: "make the folder writable for this user",
            errno.EPERM: "use a file system that has hard links",
            errno.ENOLCK: "use a file system that has locks",
            errno.EOPNOTSUPP: "use a file system that has hard links and locks",
        }.get(error.errno or 0, "make room or repair the disk, then run it again")
        raise LedgerDiskError(f"{reason}; {state}", path=path, fix=fix) from error


def _write_synced(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(handle, "wb", buffering=0) as file:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        os.fchmod(file.fileno(), 0o644)  # whatever the umask
        os.fsync(file.fileno())


def _link(temporary: Path, target: Path, *, name: str) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError as error:
        raise AlreadyRecordedError("the record is already there", path=name) from error


def _make_folder(folder: Path) -> None:
    """Make ``folder`` and what is missing above it; each is readable by all and known to the disk."""
    try:
        folder.mkdir()
    except FileExistsError:
        return  # a file in its place is told by whatever is done with it next
    except FileNotFoundError:
        _make_folder(folder.parent)
        _make_folder(folder)
        return
    folder.chmod(0o755)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _wait_for(handle: int, *, name: str, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise LedgerBusyError(name, holder=_holder(handle), timeout_s=timeout_s) from None
        time.sleep(_POLL_S)


def _sign(handle: int) -> None:
    """Leave a note for those who wait; without it the lock works as well."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _holder(handle: int) -> str:
    with suppress(OSError):
        text = os.pread(handle, 200, 0).decode(errors="replace").strip()
        return "".join(char if char.isprintable() else "?" for char in text) or "unknown"
    return "unknown"
