"""Files from network or disk into the store: hashed while they stream in, resumed where they stopped."""

import fcntl
import hashlib
import os
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

import msgspec

from repro_image.adapters.pip_settings import local_path
from repro_image.adapters.store import CHUNK_BYTES, Store, disk_errors
from repro_image.adapters.web import TryAgainError, Web, safe_url
from repro_image.errors import (
    CorruptFileError,
    DiskFullError,
    DownloadError,
    ReproImageError,
    WrongContentError,
)

if TYPE_CHECKING:
    from io import BufferedRandom

    from urllib3 import BaseHTTPResponse

THREADS = 4
_CONTENT_RANGE = re.compile(r"bytes (?P<first>\d+)-\d+/(?P<total>\d+|\*)")

OnBytes = Callable[[int], None]
T = TypeVar("T")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """One file that a lock names.

    name: for messages, such as ``torch 2.13.0``.
    find: returns where it may be had, best first: addresses or local paths; called only for a missing file.
    """

    name: str
    digest: str
    size_bytes: int
    find: Callable[[], Iterable[str]]


def missing(wanted: Sequence[Wanted], store: Store) -> tuple[Wanted, ...]:
    """Return those that are not in the store, each digest once."""
    absent = {file.digest: file for file in wanted if not store.has(file.digest, file.size_bytes)}
    return tuple(absent.values())


def download(
    wanted: Sequence[Wanted], *, store: Store, web: Web, on_bytes: OnBytes, threads: int = THREADS
) -> None:
    """Bring every file into the store, several at a time; what is there is not asked for.

    on_bytes: called from other threads with the number of new bytes; negative when a file starts over.
    Raises: the first DownloadError, WrongContentError, DiskFullError …; finished and partial files are kept.
    """
    absent = missing(wanted, store)
    needed = sum(file.size_bytes for file in absent)
    if needed > store.free_bytes():
        raise DiskFullError(str(store.root), needed_bytes=needed, free_bytes=store.free_bytes())

    def bring(file: Wanted) -> None:
        _Transfer(file, store=store, web=web, on_bytes=on_bytes).run()

    # The largest first: the last one to end then is a small one.
    in_parallel(bring, sorted(absent, key=lambda file: -file.size_bytes), stop=web.stop, threads=threads)


def in_parallel(act: Callable[[T], None], items: Sequence[T], *, stop: threading.Event, threads: int) -> None:
    """Call ``act`` for each item in daemon threads; raise the first error, at once.

    Daemons, because Ctrl-C must end this process while a thread still waits for a server.
    """
    stop.clear()
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)

    def work() -> None:
        while not stop.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                act(item)
            except BaseException as error:
                ended.put(error)
                return
            ended.put(None)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in items:
            if (error := ended.get()) is not None:
                raise error
    except BaseException:
        stop.set()
        raise


class _Transfer:
    """Brings one file into the store."""

    def __init__(self, file: Wanted, *, store: Store, web: Web, on_bytes: OnBytes) -> None:
        self._file, self._store, self._web, self._on_bytes = file, store, web, on_bytes
        self._hash = hashlib.sha256()
        self._count = 0

    def run(self) -> None:
        """Try each source until one delivers. Raises: the error of the last one."""
        failure: ReproImageError | None = None
        for source in self._file.find():
            try:
                self._from(source)
            except (DownloadError, WrongContentError) as error:
                failure = failure if isinstance(failure, WrongContentError) else error
            else:
                return
        raise failure or DownloadError(
            self._file.name, reason="no source has it", where="the configured sources"
        )

    def _from(self, source: str) -> None:
        path = local_path(source)
        if path is None:
            self._from_web(source)
            return
        try:
            self._store.add(path, self._file.digest)
        except FileNotFoundError as error:
            raise DownloadError(self._file.name, reason="the file is not there", where=str(path)) from error
        except CorruptFileError as error:
            raise self._wrong(error.found, str(path)) from error
        self._on_bytes(self._file.size_bytes)

    def _from_web(self, url: str) -> None:
        with self._partial_file() as file:
            if file is None:  # another process has just finished it
                self._on_bytes(self._file.size_bytes)
                return
            self._read_partial(file)
            was_resumed = self._count > 0
            self._complete(url, file)
            if was_resumed and self._digest != self._file.digest:
                self._restart(file)  # the partial file may have been the bad part
                self._complete(url, file)
            if self._digest != self._file.digest:
                found = self._digest
                self._restart(file)
                raise self._wrong(found, safe_url(url))
            file.flush()
            self._store.adopt(self._store.partial(self._file.digest), self._file.digest)

    @property
    def _digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def _wrong(self, found: str, where: str) -> WrongContentError:
        return WrongContentError(self._file.name, expected=self._file.digest, found=found, where=where)

    @contextmanager
    def _partial_file(self) -> Iterator["BufferedRandom | None"]:
        """Yield the partial file, locked against other processes, or None when another has just stored it."""
        path = self._store.partial(self._file.digest)
        while True:
            with disk_errors(path):
                file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")
            with disk_errors(path, needed_bytes=self._file.size_bytes), file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if self._store.has(self._file.digest, self._file.size_bytes):
                    yield None
                    return
                try:
                    is_current = os.fstat(file.fileno()).st_ino == path.stat().st_ino
                except FileNotFoundError:
                    is_current = False
                if is_current:  # else its last holder moved it away while we waited for the lock
                    yield file
                    return

    def _read_partial(self, file: "BufferedRandom") -> None:
        """Take up what an earlier run left, if it can be the beginning of the file."""
        if os.fstat(file.fileno()).st_size > self._file.size_bytes:
            self._restart(file)
            return
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            self._take(chunk)

    def _take(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self._count += len(chunk)
        self._on_bytes(len(chunk))

    def _restart(self, file: "BufferedRandom") -> None:
        self._on_bytes(-self._count)
        self._hash, self._count = hashlib.sha256(), 0
        file.seek(0)
        file.truncate()

    def _complete(self, url: str, file: "BufferedRandom") -> None:
        """Append until the locked size is reached. Raises: DownloadError, WrongContentError."""
        idle = total = 0
        while self._count < self._file.size_bytes:
            before = self._count
            try:
                self._attempt(url, file)
            except TryAgainError as error:
                idle, total = (0 if self._count > before else idle + 1), total + 1
                if idle >= self._web.limits.attempts or total >= 4 * self._web.limits.attempts:
                    raise error.final(self._file.name, attempts=total, where=url) from error
                self._web.wait(max(idle - 1, 0), error)

    def _attempt(self, url: str, file: "BufferedRandom") -> None:
        headers = {"Accept-Encoding": "identity"}
        if self._count:
            headers["Range"] = f"bytes={self._count}-"
        with self._web.request(url, headers=headers, name=self._file.name) as (response, _):
            if response.status == 416:
                self._restart(file)
                raise TryAgainError("the server cannot resume")
            self._web.require_ok(response, url=url, name=self._file.name)
            self._check_start(response, file)
            self._check_length(response, url)
            self._receive(response, file, url)
        if self._count < self._file.size_bytes:
            raise TryAgainError(
                f"the connection ended after {self._count:,} of {self._file.size_bytes:,} bytes"
            )

    def _check_start(self, response: "BaseHTTPResponse", file: "BufferedRandom") -> None:
        """Make sure that the body continues where the file ends."""
        if response.status != 206:
            if self._count:  # a server without Range sends all of it again
                self._restart(file)
            return
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if (
            found is None
            or int(found["first"]) != self._count
            or found["total"] not in ("*", str(self._file.size_bytes))
        ):
            self._restart(file)
            raise TryAgainError(
                f"the server sent another part than asked for ({response.headers.get('Content-Range')})"
            )

    def _check_length(self, response: "BaseHTTPResponse", url: str) -> None:
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and self._count + int(length) > self._file.size_bytes:
            self._refuse_size(self._count + int(length), url)

    def _receive(self, response: "BaseHTTPResponse", file: "BufferedRandom", url: str) -> None:
        started, received = monotonic(), 0
        file.seek(self._count)
        while chunk := response.read1(CHUNK_BYTES, decode_content=False):
            if self._web.stop.is_set():
                raise DownloadError(self._file.name, reason="interrupted", where=safe_url(url))
            received += len(chunk)
            if self._count + len(chunk) > self._file.size_bytes:
                self._restart(file)
                self._refuse_size(None, url)
            with disk_errors(self._store.root, needed_bytes=self._file.size_bytes):
                file.write(chunk)
            self._take(chunk)
            elapsed = monotonic() - started
            if (
                elapsed > self._web.settings.timeout_s
                and received / elapsed < self._web.limits.slowest_bytes_per_s
            ):
                raise TryAgainError(f"the server sent only {received:,} bytes in {elapsed:.0f} s")

    def _refuse_size(self, found_bytes: int | None, url: str) -> None:
        found = "a longer body" if found_bytes is None else f"{found_bytes:,} bytes"
        raise WrongContentError(
            self._file.name, expected=f"{self._file.size_bytes:,} bytes", found=found, where=safe_url(url)
        )
