"""What package files say of themselves: METADATA of wheels, control and copyright of .debs."""

import io
import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from repro_image.core.package_metadata import PackageMetadata, parse_deb_metadata, parse_wheel_metadata
from repro_image.errors import InvalidFileError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# METADATA carries a README, a bill of a large Rust program some thousand crates.
_TEXT_LIMIT_BYTES = 4 * 2**20
_BOM_LIMIT_BYTES = 16 * 2**20
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60
# RuntimeError is what zipfile raises for encrypted members and later versions of the format.
_BROKEN = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError)


def read_wheel_metadata(path: Path, *, name: str, python: str) -> PackageMetadata:
    """Return what the wheel at ``path`` says of itself. name: its file name, for errors.

    Raises: InvalidFileError.
    """
    with _readable(name), zipfile.ZipFile(path) as archive:
        files = sorted(archive.namelist())
        texts = [file for file in files if file.count("/") == 1 and file.endswith(".dist-info/METADATA")]
        boms = [file for file in files if ".dist-info/sboms/" in file and file.endswith(".json")]
        if not texts:
            raise ValueError("it has no METADATA")
        return parse_wheel_metadata(
            _bounded(archive, texts[0], _TEXT_LIMIT_BYTES).decode(errors="replace"),
            python=python,
            boms=[_bounded(archive, file, _BOM_LIMIT_BYTES) for file in boms],
        )


def read_deb_metadata(path: Path, *, name: str) -> PackageMetadata:
    """Return what the Debian package at ``path`` says of itself. name: of the package.

    Raises: InvalidFileError.
    """
    with _readable(f"{name}.deb"), path.open("rb") as file:
        control = copyright_text = ""
        for member, size in _members(file):
            start = file.tell()
            if member.startswith("control.tar"):
                control = _text_in(file, member, size, "control")
            elif member.startswith("data.tar"):
                copyright_text = _text_in(file, member, size, f"usr/share/doc/{name}/copyright")
            file.seek(start + size + size % 2)
    return parse_deb_metadata(control, copyright_text)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise InvalidFileError(
            f"the package says nothing of itself that can be read: {error}",
            path=name,
            fix="it is as its lock says, so the package is broken: choose another version and lock again",
        ) from error


def _bounded(archive: zipfile.ZipFile, file: str, limit_bytes: int) -> bytes:
    with archive.open(file) as reader:
        data = reader.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise ValueError(f"{file} has more than {limit_bytes} bytes")
    return data


def _members(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """Yield name and size of each member of an ar archive, the file at its first byte."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise ValueError("it is no ar archive")
    while header := file.read(_AR_HEADER_BYTES):
        if len(header) < _AR_HEADER_BYTES:
            raise EOFError("it is cut off")
        yield header[:16].decode("ascii", "replace").rstrip(" /"), int(header[48:58])


class _Part(io.RawIOBase):
    """The next ``size`` bytes of a file, as a file of their own."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._file.read(min(len(view), self._left))
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)


def _text_in(file: BinaryIO, member: str, size: int, wanted: str) -> str:
    """Return the text of ``wanted`` in a packed tar, "" where it is not there; nothing after it is read."""
    with (
        _unpacked(member, io.BufferedReader(_Part(file, size))) as stream,
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        for entry in archive:
            if entry.name.removeprefix("./") == wanted and entry.isfile():
                found = archive.extractfile(entry)
                return found.read(_TEXT_LIMIT_BYTES).decode(errors="replace") if found else ""
    return ""


@contextmanager
def _unpacked(member: str, part: BinaryIO) -> Iterator[BinaryIO]:
    if member.endswith(".xz"):
        with lzma.open(part) as stream:
            yield cast(BinaryIO, stream)
    elif member.endswith(".zst"):
        import zstandard

        with zstandard.ZstdDecompressor().stream_reader(part) as stream:
            yield stream
    elif member.endswith(".gz"):
        import gzip

        with gzip.open(part) as stream:
            yield cast(BinaryIO, stream)
    else:
        raise ValueError(f"{member} is packed in a way that is not known")
