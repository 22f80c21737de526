"""The members of one layer's archive -> entries. Every size that a header claims has a cap."""

import hashlib
import posixpath
import re
import tarfile
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from repro_image.core.image_files import HEAD_BYTES, FileEntry, Kind, Layer, has_head

MAX_ENTRIES = 2_000_000
MAX_NAMES_BYTES = 512 * 2**20  # of all paths, links and attributes of a layer
MAX_HEADER_BYTES = 2**18  # of a long name or of the extended header of one entry
MAX_PATH = 4096  # PATH_MAX of Linux

_CHUNK = 2**20
_DPKG_STATUS, _DPKG_STATUS_BYTES = "var/lib/dpkg/status", 32 * 2**20
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_XATTR = "SCHILY.xattr."
_LONGEST_XATTRS = 256
_SECONDS = re.compile(r"-?\d{1,11}(?:\.\d{1,20})?")
_EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_KINDS = {
    tarfile.DIRTYPE: Kind.FOLDER,
    tarfile.SYMTYPE: Kind.LINK,
    tarfile.LNKTYPE: Kind.HARD_LINK,
    tarfile.CHRTYPE: Kind.CHARACTER_DEVICE,
    tarfile.BLKTYPE: Kind.BLOCK_DEVICE,
    tarfile.FIFOTYPE: Kind.PIPE,
}


class RefusedError(Exception):
    """What is wrong with the archive; it does not know which image that is."""


class BoundedMember(tarfile.TarInfo):
    """A header that is refused before tarfile reads as many bytes into memory as it claims to need."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.size < 0 or (self.type in _EXTENDED and self.size > MAX_HEADER_BYTES):
            raise RefusedError(f"a header of type {self.type!r} claims {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._proc_gnusparse_10()
        return super()._proc_member(archive)  # type: ignore[misc]

    def _proc_gnusparse_10(self, *_: Any) -> None:
        raise RefusedError(f"{self.name!r} is sparse, which no builder writes and whose map can be endless")


class LayerScan:
    """What was seen of one layer's archive so far."""

    def __init__(self, *, contents: bool) -> None:
        self._contents = contents
        self._entries: dict[str, FileEntry] = {}
        self._removed: set[str] = set()
        self._opaque: set[str] = set()
        self._dpkg_status: str | None = None
        self._members = self._names_bytes = 0

    def layer(self, diff_id: str, size_bytes: int) -> Layer:
        return Layer(
            diff_id=diff_id,
            size_bytes=size_bytes,
            entries=self._entries,
            removed=frozenset(self._removed),
            opaque=frozenset(self._opaque),
            dpkg_status=self._dpkg_status,
        )

    def add(self, member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        """Take in one member; its content is read from ``archive`` now or never."""
        self._charge(member)
        path = _clean(member.name)
        folder, _, name = path.rpartition("/")
        if name == _OPAQUE:
            self._opaque.add(folder)
        elif name.startswith(_WHITEOUT):
            self._removed.add(_clean(f"{folder}/{name.removeprefix(_WHITEOUT)}"))
        else:
            self._entries[path] = self._entry(path, member, archive)

    def _charge(self, member: tarfile.TarInfo) -> None:
        if len(member.name) > MAX_PATH or len(member.linkname) > MAX_PATH:
            raise RefusedError(f"a path or link is longer than {MAX_PATH}: {member.name[:60]!r}…")
        if member.issparse():
            raise RefusedError(f"{member.name!r} is sparse, which no builder writes")
        self._members += 1
        self._names_bytes += len(member.name) + len(member.linkname)
        self._names_bytes += sum(len(key) + len(value) for key, value in member.pax_headers.items())
        if self._members > MAX_ENTRIES or self._names_bytes > MAX_NAMES_BYTES:
            raise RefusedError(
                f"more than {MAX_ENTRIES} entries, or {MAX_NAMES_BYTES} bytes of names and attributes"
            )

    def _entry(self, path: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> FileEntry:
        kind = Kind.FILE if member.isreg() else _KINDS.get(member.type)
        if kind is None:
            raise RefusedError(f"{member.name!r} is of the unknown type {member.type!r}")
        content: dict[str, Any] = {}
        if kind is Kind.FILE:
            content = {"size": member.size, **self._read(path, member, archive)}
        elif kind is Kind.HARD_LINK:
            content = _shared(self._entries.get(_clean(member.linkname)))
        return FileEntry(
            kind=kind,
            mode=member.mode & 0o7777,
            uid=member.uid,
            gid=member.gid,
            mtime_ns=_nanoseconds(member),
            link=_target(kind, member),
            xattrs=_xattrs(member.pax_headers),
            **{"size": 0, **content},
        )

    def _read(self, path: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> dict[str, Any]:
        """Return the digests of a file's content; keep the one file that names packages."""
        is_status = path == _DPKG_STATUS and member.size <= _DPKG_STATUS_BYTES
        stream = archive.extractfile(member) if self._contents or is_status else None
        if stream is None:
            return {}
        head = stream.read(HEAD_BYTES) if has_head(path) else b""
        whole, rest = hashlib.sha256(head), hashlib.sha256()
        status = bytearray()
        while chunk := stream.read(_CHUNK):
            whole.update(chunk)
            if head:
                rest.update(chunk)
            if is_status:
                status += chunk
        if is_status:
            self._dpkg_status = status.decode("utf-8", "replace")
        return {"sha256": whole.digest(), "head": head, "rest": rest.digest() if head else b""}


def _shared(entry: FileEntry | None) -> dict[str, Any]:
    """Return the content of the file that a hard link shares; none where an earlier layer has it."""
    if entry is None:
        return {}
    return {"size": entry.size, "sha256": entry.sha256, "head": entry.head, "rest": entry.rest}


def _clean(name: str) -> str:
    """Return ``name`` without ``.``, ``..`` and slashes at its ends; it cannot leave the root."""
    return posixpath.normpath(f"/{name}").lstrip("/")


def _target(kind: Kind, member: tarfile.TarInfo) -> str:
    if kind is Kind.HARD_LINK:
        return _clean(member.linkname)
    if kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE):
        return f"{member.devmajor}:{member.devminor}"
    return member.linkname if kind is Kind.LINK else ""


def _nanoseconds(member: tarfile.TarInfo) -> int:
    """Return the modification time; tarfile's own is a float, which loses the last digits."""
    text = member.pax_headers.get("mtime")
    if text is None:
        return int(member.mtime) * 10**9
    if not _SECONDS.fullmatch(text):
        raise RefusedError(f"the time of {member.name!r} is {text[:40]!r}")
    return int(Decimal(text) * 10**9)


def _xattrs(headers: Mapping[str, str]) -> str:
    pairs = sorted(
        (key.removeprefix(_XATTR), value) for key, value in headers.items() if key.startswith(_XATTR)
    )
    text = " ".join(f"{key}={value.encode('utf-8', 'surrogateescape').hex()}" for key, value in pairs)
    return (
        text
        if len(text) <= _LONGEST_XATTRS
        else f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()}"
    )
