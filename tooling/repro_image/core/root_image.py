"""The image of a root file system: its time is the lock's, not the moment at which an engine took it up.

`docker import` notes that moment in the image's history. BuildKit of Docker 26 sets it back to
SOURCE_DATE_EPOCH in what is built on it, that of Docker 28 keeps it: the built image would hold a clock.
"""

from typing import NamedTuple

from repro_image.core.canonical import canonical_json
from repro_image.core.moment import timestamp_of
from repro_image.core.oci import CONFIG, MANIFESTS, PLAIN_LAYERS, Descriptor
from repro_image.core.reference import sha256_digest


class RootImage(NamedTuple):
    """Documents of an image of one layer. descriptor: of the manifest; its digest is the image's id."""

    config: bytes
    manifest: bytes
    descriptor: Descriptor


def root_image(digest: str, *, size_bytes: int, created_s: int) -> RootImage:
    """Return the image whose only layer is a tar.

    digest, size_bytes: of the tar, which is not compressed.
    created_s:          SOURCE_DATE_EPOCH of the lock.
    """
    moment = timestamp_of(created_s)
    config = canonical_json(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": moment,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
            "history": [{"created": moment, "comment": "Imported from -"}],  # the words of docker import
        }
    )
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFESTS[0],
            "config": {"mediaType": CONFIG, "digest": sha256_digest(config), "size": len(config)},
            "layers": [{"mediaType": PLAIN_LAYERS[0], "digest": digest, "size": size_bytes}],
        }
    )
    descriptor = Descriptor(media_type=MANIFESTS[0], digest=sha256_digest(manifest), size=len(manifest))
    return RootImage(config, manifest, descriptor)
