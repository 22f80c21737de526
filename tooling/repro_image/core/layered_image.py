"""An image that is another one with layers on top, as the documents that a store takes in."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from repro_image.core.image_manifest import ImageDocuments
from repro_image.core.moment import timestamp_of
from repro_image.core.reference import sha256_digest

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


class AddedLayer(msgspec.Struct, frozen=True, kw_only=True):
    """An uncompressed layer. step: what made it, as the history has it."""

    digest: str
    size_bytes: int
    step: str


def layered_image(
    below: ImageDocuments, layers: Sequence[AddedLayer], *, name: str, source_date_epoch: int
) -> Mapping[str, bytes]:
    """Return the documents of an OCI layout, path -> bytes, of ``below`` with ``layers`` on top.

    The history is what BuildKit writes for one COPY per layer, so that a build from this image ends in the
    same config as one that copied. name: the whole reference that the image gets in the engine.
    """
    created = timestamp_of(source_date_epoch)
    fields = below.config_fields
    steps = [
        {"created": created, "created_by": layer.step, "comment": "buildkit.dockerfile.v0"}
        for layer in layers
    ]
    config = {
        **fields,
        "rootfs": {"type": "layers", "diff_ids": [*below.diff_ids, *(layer.digest for layer in layers)]},
        "history": [*(fields.get("history") or ()), *steps],
    }
    blobs = [_document(config)]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _descriptor(CONFIG, blobs[0]),
        "layers": [
            *(
                {"mediaType": one.media_type, "digest": one.digest, "size": one.size}
                for one in below.manifest.layers
            ),
            *({"mediaType": LAYER, "digest": one.digest, "size": one.size_bytes} for one in layers),
        ],
    }
    blobs.append(_document(manifest))
    platform = {"architecture": fields["architecture"], "os": fields["os"]}
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    entry = {**_descriptor(MANIFEST, blobs[1]), "platform": platform, "annotations": names}
    return {
        "oci-layout": _document({"imageLayoutVersion": "1.0.0"}),
        "index.json": _document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}),
        **{blob_path(sha256_digest(blob)): blob for blob in blobs},
    }


def blob_path(digest: str) -> str:
    """Return where an OCI layout has the blob of this digest."""
    return f"blobs/{digest.replace(':', '/')}"


def _document(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256_digest(blob), "size": len(blob)}
