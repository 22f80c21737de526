"""A mirror image: everything that the locks of one image name, as one artifact of a registry.

One layer per file, under the file's own sha256: what a lock names by digest is found there without the
artifact's manifest, also where a newer lock has replaced the one that was pushed.
"""

from collections.abc import Iterable

import msgspec

from repro_image.core.canonical import canonical_digest
from repro_image.core.lockfile import DebianLock, GgufLock, Locks
from repro_image.core.oci import MANIFESTS, Descriptor, Manifest
from repro_image.core.reference import Digest, sha256_digest

ARTIFACT = "application/vnd.repro-image.mirror.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY_BYTES = b"{}"
ROOT = "base/root.tar"
BASE_MANIFEST, BASE_CONFIG = "base/manifest.json", "base/config.json"
_FILE = "application/vnd.repro-image.mirror.file.v1"
_TITLE = "org.opencontainers.image.title"


class MirrorFile(msgspec.Struct, frozen=True, kw_only=True):
    """title: where it would stand in a folder. size_bytes: None where the lock does not tell it."""

    title: str
    digest: Digest
    size_bytes: int | None = None


def stored_files(locks: Locks) -> tuple[MirrorFile, ...]:
    """Return the files of the store that the locks name, each digest once, sorted by title.

    The root's tar and the converted model are among them: the programs that make them from packages and a
    wheel need not exist any more when the image is built again.
    """
    wheels = [locks.requirements.installer, *locks.requirements.wheels]
    if isinstance(locks.model, GgufLock):
        wheels.append(locks.model.source)
    files = [
        *(_file(f"wheels/{wheel.filename}", wheel.sha256, wheel.size_bytes) for wheel in wheels),
        *(
            _file(f"debs/{deb.path.rpartition('/')[2]}", deb.sha256, deb.size_bytes)
            for deb in locks.base.packages
        ),
        *(_file(f"model/{file.path}", file.sha256, file.size_bytes) for file in locks.model.files),
    ]
    if isinstance(locks.base, DebianLock):
        files.append(_file(ROOT, locks.base.root))
    by_digest = {file.digest: file for file in sorted(files, key=lambda file: file.title, reverse=True)}
    return tuple(sorted(by_digest.values(), key=lambda file: file.title))


def base_layers(manifest: Manifest) -> tuple[MirrorFile, ...]:
    """Return the layers of a base of a registry, bottom first."""
    return tuple(
        _file(f"base/layer-{number:03d}", layer.digest, layer.size)
        for number, layer in enumerate(manifest.layers, start=1)
    )


class _Typed(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = MANIFESTS[0]


def media_type_of(manifest: bytes) -> str:
    """Return what a manifest says to be; OCI's need not say it."""
    return msgspec.json.decode(manifest, type=_Typed).media_type


def mirror_tag(locks: Locks) -> str:
    """Return the tag of the mirror image: a digest of what the locks name."""
    digests = [file.digest for file in stored_files(locks)]
    return canonical_digest([locks.base.root, *digests]).removeprefix("sha256:")[:16]


def mirror_manifest(files: Iterable[tuple[MirrorFile, int]]) -> bytes:
    """Return the artifact's manifest. files: with their sizes."""
    empty = {"mediaType": EMPTY, "digest": sha256_digest(EMPTY_BYTES), "size": len(EMPTY_BYTES)}
    layers = [
        {
            "mediaType": _FILE,
            "digest": file.digest,
            "size": size,
            "annotations": {_TITLE: file.title},
        }
        for file, size in files
    ]
    fields = {
        "schemaVersion": 2,
        "mediaType": MANIFESTS[0],
        "artifactType": ARTIFACT,
        "config": empty,
        "layers": layers,
    }
    return msgspec.json.encode(fields, order="sorted")


def title_of(layer: Descriptor) -> str:
    return (layer.annotations or {}).get(_TITLE, layer.digest)


def _file(title: str, digest: str, size_bytes: int | None = None) -> MirrorFile:
    return MirrorFile(title=title, digest=digest, size_bytes=size_bytes)
