"""Why two builds of a file differ, and what to change: rules over two entries of one path."""

import re
from enum import StrEnum
from typing import NamedTuple

from repro_image.core.image_files import FileEntry, Kind, readable


class Cause(StrEnum):
    """Why something differs between two images."""

    TIME = "time"
    BYTECODE = "bytecode"
    LOG = "log"
    CACHE = "cache"
    MACHINE = "machine"
    MODE = "mode"
    OWNER = "owner"
    ATTRIBUTES = "attributes"
    LINK = "link"
    ORDER = "order"
    ARCHIVE = "archive"
    LAYERS = "layers"
    CONFIG = "config"
    COMPRESSION = "compression"
    CONTENT = "content"


class Finding(NamedTuple):
    """Why one thing differs. fields: the columns that differ; fix: what to change."""

    cause: Cause
    fields: tuple[str, ...]
    detail: str
    fix: str


FIXES = {
    Cause.TIME: "set the times of what a RUN wrote at its end: find /out -newermt @$SOURCE_DATE_EPOCH "
    "-exec touch -hcd @$SOURCE_DATE_EPOCH {} +, and pass SOURCE_DATE_EPOCH to the build",
    Cause.BYTECODE: "compile with SOURCE_DATE_EPOCH in the environment, which makes bytecode hash-based, "
    "or set PYTHONDONTWRITEBYTECODE=1",
    Cause.LOG: "remove it in the RUN that writes it: rm -rf /var/log/*",
    Cause.CACHE: "remove it in the RUN that writes it: /var/cache/ldconfig/aux-cache, /var/cache/apt/*.bin, "
    "/var/lib/apt/lists/*, ~/.cache",
    Cause.MACHINE: "remove it in the RUN that writes it: it tells of the machine that built",
    Cause.MODE: "set it: COPY --chmod=, or umask and chmod in the RUN; COPY keeps a checkout's modes",
    Cause.OWNER: "set it: COPY --chown=, or chown in the RUN",
    Cause.ATTRIBUTES: "set extended attributes in the RUN (setcap, setfattr), with a builder that keeps them",
    Cause.LINK: "make the link itself in the RUN, to a fixed target; copy with cp -a, which keeps links",
    Cause.ORDER: "write the archive in one order: tar --sort=name, or let BuildKit write the layer",
    Cause.ARCHIVE: "write the archive with the same tool and options: its headers or its padding differ",
    Cause.LAYERS: "split the image into the same layers, in the same order",
    Cause.CONFIG: "set it in the Dockerfile or by an option of the build, from no clock and no machine",
    Cause.COMPRESSION: "nothing for the image's sake; export with force-compression=true for equal manifests",
    Cause.CONTENT: "find the step that writes it, and lock its input by hash or take the chance out of it",
}

_LOG = re.compile(r"var/log/.*|.*\.log(?:\.\d+)?(?:\.gz)?")
_CACHE = re.compile(
    r"var/cache/.*|var/lib/apt/lists/.*|(?:.*/)?\.cache/.*|var/lib/dpkg/.*-old|tmp/.*|var/tmp/.*"
)
_MACHINE = re.compile(
    r"etc/(?:machine-id|hostname|hosts|resolv\.conf|mtab|adjtime|ssh/ssh_host_.*)|var/lib/dbus/machine-id"
    r"|var/lib/systemd/random-seed"
)
_PLACES = ((_LOG, Cause.LOG), (_CACHE, Cause.CACHE), (_MACHINE, Cause.MACHINE))
_GZIP = b"\x1f\x8b"
_MOUNT_POINTS = ("dev", "proc", "sys")


def file_finding(path: str, a: FileEntry | None, b: FileEntry | None) -> Finding | None:
    """Return why ``path`` differs, or None when both sides are equal; at least one side is there.

    The gravest cause counts: a file with other content and another time differs in content.
    """
    if a == b:
        return None
    if a is None or b is None:
        return _place(path, ("path",), f"only in {'B' if a is None else 'A'}")
    fields = _differing(a, b)
    if "type" in fields or "target" in fields:
        links = {Kind.LINK, Kind.HARD_LINK} & {a.kind, b.kind}
        detail = f"{_told(a)} in A, {_told(b)} in B"
        return _finding(Cause.LINK, fields, detail) if links else _place(path, fields, detail)
    if "sha256" in fields or "size" in fields:
        return _content(path, fields, a, b)
    for field, cause in (("xattrs", Cause.ATTRIBUTES), ("owner", Cause.OWNER), ("mode", Cause.MODE)):
        if field in fields:
            return _finding(cause, fields, "")
    if path in _MOUNT_POINTS:
        fix = "run it in a stage of its own and COPY what it made, or start from a base that has the folder"
        return Finding(Cause.TIME, fields, "made by the builder, which mounts there", fix)
    return _finding(Cause.TIME, fields, "")


def _differing(a: FileEntry, b: FileEntry) -> tuple[str, ...]:
    contents = {"size": (a.size, b.size), "sha256": (a.sha256, b.sha256)}
    pairs = {
        "type": (a.kind, b.kind),
        "target": (a.link, b.link),
        **(contents if a.sha256 and b.sha256 else {}),
        "xattrs": (a.xattrs, b.xattrs),
        "owner": ((a.uid, a.gid), (b.uid, b.gid)),
        "mode": (a.mode, b.mode),
        "mtime": (a.mtime_ns, b.mtime_ns),
    }
    return tuple(field for field, (left, right) in pairs.items() if left != right)


def _content(path: str, fields: tuple[str, ...], a: FileEntry, b: FileEntry) -> Finding:
    if path.endswith(".pyc"):
        detail, fix = _bytecode(a, b)
        return Finding(Cause.BYTECODE, fields, detail, fix)
    clock = a.head[:2] == b.head[:2] == _GZIP and a.rest == b.rest
    if clock and a.head[:4] + a.head[8:] == b.head[:4] + b.head[8:]:
        fix = "compress with gzip -n, which leaves the time out"
        return Finding(Cause.TIME, fields, "same content, a time in its gzip header", fix)
    return _place(path, fields, "")


def _bytecode(a: FileEntry, b: FileEntry) -> tuple[str, str]:
    """Return what differs in two bytecode files, by their header: magic, flags, then time and size, or hash.

    Source: PEP 552.
    """
    if a.head[:4] != b.head[:4]:
        return "compiled by another version of Python", "lock the interpreter that compiles"
    if a.head[4:8] != b.head[4:8]:
        return f"{_form(a)} in A, {_form(b)} in B", FIXES[Cause.BYTECODE]
    if a.rest == b.rest:
        what = "time or size" if _form(a) == "timestamp-based" else "hash"
        return f"same code, the source's {what} in its header differs", FIXES[Cause.BYTECODE]
    if a.head == b.head:
        fix = "compile all files in one process, none of it imported before, with PYTHONHASHSEED=0"
        return "same source, other code", fix
    return "the source differs too", "look at its source first: bytecode follows it"


def _form(entry: FileEntry) -> str:
    return "hash-based" if int.from_bytes(entry.head[4:8], "little") & 1 else "timestamp-based"


def _place(path: str, fields: tuple[str, ...], detail: str) -> Finding:
    """Return the finding of a file whose content differs or that one side lacks: where it lies tells why."""
    if path.endswith(".pyc") or path.rpartition("/")[2] == "__pycache__":
        return _finding(Cause.BYTECODE, fields, detail)
    cause = next((cause for pattern, cause in _PLACES if pattern.fullmatch(path)), Cause.CONTENT)
    return _finding(cause, fields, detail)


def _finding(cause: Cause, fields: tuple[str, ...], detail: str) -> Finding:
    return Finding(cause, fields, detail, FIXES[cause])


def _told(entry: FileEntry) -> str:
    return readable(f"{entry.kind} to {entry.link}") if entry.link else str(entry.kind)
