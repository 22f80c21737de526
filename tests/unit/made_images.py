"""Small OCI layouts, written with tarfile alone."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard


@dataclass(frozen=True)
class File:
    """One member of a layer; a plain file unless ``type`` says otherwise."""

    path: str
    content: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 1_000_000
    link: str = ""
    uname: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def folder(path: str, **fields: Any) -> File:
    return File(path, type=tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def link(path: str, target: str, **fields: Any) -> File:
    return File(path, type=tarfile.SYMTYPE, link=target, **fields)


def hard_link(path: str, target: str, **fields: Any) -> File:
    return File(path, type=tarfile.LNKTYPE, link=target, **fields)


def layer(*files: File, form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return the archive of ``files``, in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for file in files:
            member = tarfile.TarInfo(file.path)
            member.type, member.linkname, member.size = file.type, file.link, len(file.content)
            member.mode, member.uid, member.gid, member.mtime = file.mode, file.uid, file.gid, file.mtime
            member.uname, member.pax_headers = file.uname, dict(file.headers)
            archive.addfile(member, io.BytesIO(file.content))
    return buffer.getvalue()


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def zstandarded(data: bytes) -> bytes:
    return zstandard.compress(data)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Layout:
    """An OCI layout in a folder, with as many images as were added."""

    root: Path

    def __post_init__(self) -> None:
        (self.root / "blobs/sha256").mkdir(parents=True)
        (self.root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.descriptors: list[dict[str, Any]] = []
        self.write_index()

    def blob(self, data: bytes) -> dict[str, Any]:
        """Write a blob and return its descriptor."""
        digest = digest_of(data)
        (self.root / "blobs/sha256" / digest.removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": "application/octet-stream", "digest": digest, "size": len(data)}

    def image(self, layers: Sequence[bytes], *, pack: Any = bytes, **config: Any) -> str:
        """Add an image; return its manifest's digest. pack: how layers are compressed."""
        fields = {
            "config": {"Env": ["PATH=/bin"]},
            "created": "1970-01-01T00:00:00Z",
            "rootfs": {"type": "layers", "diff_ids": [digest_of(data) for data in layers]},
            **config,
        }
        manifest = {
            "config": self.blob(json.dumps(fields).encode()),
            "layers": [self.blob(pack(data)) for data in layers],
        }
        self.descriptors.append(self.blob(json.dumps(manifest).encode()))
        self.write_index()
        return str(self.descriptors[-1]["digest"])

    def write_index(self) -> None:
        (self.root / "index.json").write_text(json.dumps({"manifests": self.descriptors}))

    def tar(self, path: Path) -> Path:
        """Write the layout as one tar file, as `docker save` does."""
        with tarfile.open(path, "w") as archive:
            for file in sorted(each for each in self.root.rglob("*") if each.is_file()):
                archive.add(file, arcname=str(file.relative_to(self.root)))
        return path


def layout(root: Path, *layers: bytes, **fields: Any) -> Layout:
    """Return a layout of one image."""
    made = Layout(root)
    made.image(layers, **fields)
    return made
