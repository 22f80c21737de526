"""The files of an image: entries of layers, and what is seen when the layers lie on one another."""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

# How many bytes at the start of a file may tell when or how it was written; more is content.
HEAD_BYTES = 16
_HEADED = (".pyc", ".gz")


class Kind(StrEnum):
    """What an entry of a layer is."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    HARD_LINK = "hard link"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    PIPE = "pipe"


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One entry of a layer, without its path and its content.

    mode:   permission bits, with setuid, setgid and sticky.
    link:   target of a link as written, path of the file that a hard link shares, numbers of a device.
    sha256: raw digest of the content; None for what has none, and where contents were not read.
    head:   first 16 bytes of bytecode and gzip files, else empty; ``rest`` is the digest of what follows.
    xattrs: ``name=hex`` each, sorted; the digest of that where it is long.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    link: str = ""
    sha256: bytes | None = None
    head: bytes = b""
    rest: bytes = b""
    xattrs: str = ""


class Package(msgspec.Struct, frozen=True, order=True):
    """A Python or Debian package that a layer brings."""

    name: str
    version: str


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer holds. Paths have no slash at either end.

    size_bytes:  of the uncompressed archive.
    entries:     path -> entry, in the archive's order; of two with one path the later one counts.
    removed:     paths that the layer takes away from those below it.
    opaque:      folders of which nothing below the layer is seen.
    dpkg_status: text of Debian's list of packages, where the layer has one.
    """

    diff_id: str
    size_bytes: int
    entries: Mapping[str, FileEntry]
    removed: frozenset[str] = frozenset()
    opaque: frozenset[str] = frozenset()
    dpkg_status: str | None = None


class Placed(NamedTuple):
    """An entry of the merged view. layer: index of the layer that it is seen from, bottom first."""

    layer: int
    entry: FileEntry


def has_head(path: str) -> bool:
    """Return whether a file of this name starts with bytes that are told apart from its content."""
    return path.endswith(_HEADED)


def readable(text: str) -> str:
    """Return ``text`` as it can be written anywhere: names in archives need not be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def merge(layers: Sequence[Layer]) -> dict[str, Placed]:
    """Return path -> entry of what a container of these layers sees, whiteouts applied."""
    merged: dict[str, Placed] = {}
    for number, layer in enumerate(layers):
        gone = layer.removed | _replaced_folders(layer, merged)
        if gone or layer.opaque:
            merged = {
                path: placed for path, placed in merged.items() if not _is_hidden(path, gone, layer.opaque)
            }
        for path, entry in layer.entries.items():
            merged[path] = Placed(number, entry)
    return merged


def _replaced_folders(layer: Layer, merged: Mapping[str, Placed]) -> frozenset[str]:
    return frozenset(
        path
        for path, entry in layer.entries.items()
        if entry.kind is not Kind.FOLDER and path in merged and merged[path].entry.kind is Kind.FOLDER
    )


def removes(layer: Layer, path: str) -> bool:
    """Return whether the layer takes ``path`` away from the layers below it."""
    return _is_hidden(path, layer.removed, layer.opaque)


def _is_hidden(path: str, gone: frozenset[str], opaque: frozenset[str]) -> bool:
    return path in gone or any(parent in gone or parent in opaque for parent in _parents(path))


def _parents(path: str) -> Iterator[str]:
    """Yield the folders above ``path``, the root (an empty path) last."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def layer_packages(layers: Sequence[Layer]) -> list[tuple[Package, ...]]:
    """Return, for each layer, the packages that it brings: Python's by their metadata, Debian's by dpkg's
    list.
    """
    known: frozenset[Package] = frozenset()
    listed = []
    for layer in layers:
        found = {package for path in layer.entries if (package := _python_package(path))}
        if layer.dpkg_status is not None:
            installed = frozenset(_debian_packages(layer.dpkg_status))
            found |= installed - known
            known = installed
        listed.append(tuple(sorted(found)))
    return listed


def _python_package(path: str) -> Package | None:
    folder, _, file = path.rpartition("/")
    name, is_metadata, version = "", file == "METADATA" and folder.endswith(".dist-info"), ""
    if is_metadata:
        name, _, version = folder.rpartition("/")[2].removesuffix(".dist-info").partition("-")
    return Package(readable(name.lower().replace("_", "-")), readable(version)) if name and version else None


def _debian_packages(status: str) -> Iterator[Package]:
    for paragraph in status.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in paragraph.split("\n") if ": " in line and not line.startswith(" ")
        )
        if fields.get("Status", "").endswith(" installed") and {"Package", "Version"} <= fields.keys():
            yield Package(fields["Package"], fields["Version"])
