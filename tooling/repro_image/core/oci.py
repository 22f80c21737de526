"""What a registry answers, as the OCI image specification and Docker's older one have it: bytes -> values."""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, TypeAlias

import msgspec

from repro_image.core.reference import Digest

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
CONFIG = "application/vnd.oci.image.config.v1+json"
PLAIN_LAYERS = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
)
ZSTD_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
_COMPRESSIONS = {"tar": "uncompressed", "tar+zstd": "zstd", "tar+gzip": "gzip", "tar.gzip": "gzip"}
# Manifests and configurations are kilobytes; registries refuse manifests above this size.
DOCUMENT_LIMIT_BYTES = 4 * 2**20
# ZIP files, and with them wheels, know no earlier time.
OLDEST_TIME_S = 315_532_800

Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**50)]


class PlatformName(msgspec.Struct, frozen=True):
    architecture: str
    os: str
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """What one document says of another."""

    media_type: str
    digest: Digest
    size: Size
    platform: PlatformName | None = None
    annotations: dict[str, str] | None = None

    @property
    def is_attestation(self) -> bool:
        """Whether BuildKit put it beside an image to tell how that was built."""
        return "vnd.docker.reference.type" in (self.annotations or {})


class Index(msgspec.Struct, frozen=True, rename="camel"):
    manifests: tuple[Descriptor, ...]


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def compression(self) -> str:
        """How the layers are packed, such as ``zstd``; several ways are joined by a comma."""
        kinds = {layer.media_type.rpartition(".v1.")[2].rpartition("diff.")[2] for layer in self.layers}
        return ",".join(sorted({_COMPRESSIONS.get(kind, "unknown") for kind in kinds})) or "uncompressed"


class ConfigDetails(msgspec.Struct, frozen=True, rename="pascal"):
    on_build: tuple[str, ...] | None = None


class ImageConfig(msgspec.Struct, frozen=True):
    """An image's configuration, as far as it matters here."""

    architecture: str
    os: str
    created: datetime | None = None
    config: ConfigDetails | None = None

    @property
    def created_s(self) -> int:
        """Seconds since 1970; some builders write no time, or one long before there were computers."""
        return max(OLDEST_TIME_S, int(self.created.timestamp()) if self.created else 0)


def manifest_bytes(config: Descriptor, layers: Iterable[Descriptor]) -> bytes:
    """Return the manifest of an image, the same bytes on every machine."""
    fields = {
        "schemaVersion": 2,
        "mediaType": MANIFESTS[0],
        "config": {"mediaType": CONFIG, "digest": config.digest, "size": config.size},
        "layers": [
            {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size} for layer in layers
        ],
    }
    return msgspec.json.encode(fields, order="sorted")


def parse_document(body: bytes, *, media_type: str) -> Index | Manifest:
    """Return the index or the manifest that ``body`` is.

    One that says it is the other, or that could be read as both, is refused: two readers would take two
    images for one digest. Raises: ValueError with the reason.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        own = msgspec.json.decode(fields["mediaType"], type=str) if "mediaType" in fields else media_type
        if own != media_type:
            raise ValueError(f"it says to be {own[:100]!r} and came as {media_type[:100]!r}")
        if media_type not in (*INDEXES, *MANIFESTS):
            raise ValueError(f"{media_type[:100]!r} is no image manifest or index")
        if "manifests" in fields and {"config", "layers"} & set(fields):
            raise ValueError("it can be read as a manifest and as an index")
        if media_type in INDEXES:
            return msgspec.json.decode(body, type=Index)
        return msgspec.json.decode(body, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it is no image manifest: {error}") from error


def parse_config(body: bytes) -> ImageConfig:
    """Return the configuration that ``body`` is. Raises: ValueError with the reason."""
    try:
        return msgspec.json.decode(body, type=ImageConfig)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it is no image configuration: {error}") from error


def for_platform(index: Index, platform: str) -> Descriptor | None:
    """Return the manifest of ``platform``, such as ``linux/amd64``: the plainest where there are variants."""
    fitting = [one for one in index.manifests if one.platform is not None and _fits(one.platform, platform)]
    return min(fitting, key=lambda one: str(one.platform), default=None)


def platforms(descriptors: Iterable[Descriptor]) -> tuple[str, ...]:
    """Return the platforms by name, sorted; attestations, which stand among them, have none."""
    named = {str(one.platform) for one in descriptors if one.platform is not None}
    return tuple(sorted(named - {"unknown/unknown"}))


def _fits(found: PlatformName, wanted: str) -> bool:
    return f"{found.os}/{found.architecture}" == wanted
