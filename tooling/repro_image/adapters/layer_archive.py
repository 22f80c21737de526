"""One layer's archive -> Layer, read once from front to back. Nothing is unpacked; every size has a cap.

Archives come from strangers: a header can claim any size, and a few bytes can unpack to terabytes.
"""

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from repro_image.adapters.layer_scan import BoundedMember, LayerScan, RefusedError
from repro_image.core.image_files import Layer
from repro_image.errors import BrokenImageError

MAX_LAYER_BYTES = 256 * 2**30

_CHUNK = 2**20
_SMALL_CHUNK = 2**16  # tarfile copies the rest of it at each header


class _Counted(io.RawIOBase):
    """A stream that is counted while it is read, up to a limit."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.size = stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self._stream.readinto(buffer))
        self.size += count
        if self.size > MAX_LAYER_BYTES:
            raise RefusedError(f"it unpacks to more than {MAX_LAYER_BYTES} bytes")
        return count


class _Hashed(_Counted):
    """A counted stream that is hashed, too."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._hash = hashlib.sha256()

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._hash.update(memoryview(buffer)[:count])
        return count

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def read_layer(stream: io.BufferedReader, *, digest: str, image: str) -> Layer:
    """Return the layer whose archive ``stream`` holds, plain, gzip or zstd; every file is hashed.

    digest: of the stream's bytes; proved.
    Raises: BrokenImageError.
    """
    with _broken(image, digest):
        stored = _Hashed(stream)
        buffered = io.BufferedReader(stored, _CHUNK)
        unpacked = _unpacked(buffered)
        plain = stored if unpacked is None else _Hashed(unpacked)
        reader = buffered if unpacked is None else io.BufferedReader(plain, _CHUNK)
        scan = _scanned(reader, contents=True)
        for each in (reader, buffered):  # what follows the archive's end is part of the digests
            _drain(each)
        if stored.digest != digest:
            raise RefusedError(f"its content is {stored.digest}")
        return scan.layer(plain.digest, plain.size)


def read_headers(stream: io.BufferedReader, *, diff_id: str, image: str) -> Layer:
    """Return the layer that ``stream`` claims to hold: names and sizes, neither hashed nor proved.

    Much faster than ``read_layer`` for a plain archive in a file, whose contents are skipped.
    """
    with _broken(image, diff_id):
        unpacked = _unpacked(stream)
        if unpacked is None and stream.seekable():
            scan = _scanned(stream, contents=False)
            return scan.layer(diff_id, stream.seek(0, io.SEEK_END))
        plain = _Counted(unpacked or stream)
        reader = io.BufferedReader(plain, _CHUNK)
        scan = _scanned(reader, contents=False)
        _drain(reader)
        return scan.layer(diff_id, plain.size)


def _scanned(reader: Any, *, contents: bool) -> LayerScan:
    """Return what is in an archive, read to its end; skips contents where it can and may."""
    scan = LayerScan(contents=contents)
    mode: Any = "r:" if reader.seekable() else "r|"
    with tarfile.open(fileobj=reader, mode=mode, bufsize=_SMALL_CHUNK, tarinfo=BoundedMember) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined] # tarfile keeps them all
            scan.add(member, archive)
    return scan


def _drain(reader: Any) -> None:
    while reader.read(_CHUNK):
        pass


@contextmanager
def _broken(image: str, digest: str) -> Iterator[None]:
    """Turn what the libraries raise for a broken archive into BrokenImageError."""
    import zstandard

    errors = (
        EOFError,
        ValueError,
        OverflowError,
        RecursionError,
        tarfile.TarError,
        zlib.error,
        zstandard.ZstdError,
    )
    try:
        yield
    except (*errors, OSError, RefusedError) as error:
        raise BrokenImageError(f"layer {digest}: {error}", image=image) from error


def _unpacked(stored: Any) -> Any:
    """Return a stream of what the compressed stream unpacks to; None where it is not compressed."""
    import zstandard

    head = stored.peek(4)[:4]
    if head[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=stored)
    if head == b"\x28\xb5\x2f\xfd":
        return zstandard.ZstdDecompressor().stream_reader(stored, read_across_frames=True)
    return None
