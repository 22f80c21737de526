"""What an image says of itself, as far as images are compared by it. It comes from strangers."""

from typing import Any, TypeVar

import msgspec

from repro_image.core.oci import Manifest
from repro_image.core.reference import Digest
from repro_image.errors import BrokenImageError

T = TypeVar("T")


class RootFs(msgspec.Struct, frozen=True, kw_only=True):
    """diff_ids: digests of the uncompressed layers, bottom first."""

    diff_ids: tuple[Digest, ...]


class History(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the recipe. empty_layer: whether it made no layer."""

    created_by: str = ""
    empty_layer: bool = False


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a config that name layers."""

    rootfs: RootFs
    history: tuple[History, ...] | None = None

    @property
    def layer_steps(self) -> tuple[str, ...]:
        """What made each layer, where the history tells it for all of them; else empty texts."""
        steps = tuple(step.created_by for step in self.history or () if not step.empty_layer)
        return steps if len(steps) == len(self.rootfs.diff_ids) else ("",) * len(self.rootfs.diff_ids)


class ImageDocuments(msgspec.Struct, frozen=True, kw_only=True):
    """What an image says of itself.

    digest:        of the manifest.
    config_fields: the config as plain values, for comparing key by key.
    """

    name: str
    digest: str
    manifest: Manifest
    config: Config
    config_fields: dict[str, Any]

    @property
    def diff_ids(self) -> tuple[str, ...]:
        return self.config.rootfs.diff_ids


def parse_documents(name: str, digest: str, manifest: bytes, config: bytes) -> ImageDocuments:
    """Return the image of a manifest and its config. Raises: BrokenImageError."""
    parsed = parse_document(manifest, Manifest, name=name, what="manifest")
    fields = parse_document(config, dict[str, Any], name=name, what="config")
    documents = ImageDocuments(
        name=name,
        digest=digest,
        manifest=parsed,
        config=parse_document(config, Config, name=name, what="config"),
        config_fields=fields,
    )
    if len(parsed.layers) != len(documents.diff_ids):
        told = f"the manifest names {len(parsed.layers)} layers, the config {len(documents.diff_ids)}"
        raise BrokenImageError(told, image=name)
    return documents


def parse_document(data: bytes, kind: type[T], *, name: str, what: str) -> T:
    """Return the JSON document ``data``; keys that are not asked for are left out."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BrokenImageError(f"its {what} is not as OCI writes it: {error}", image=name) from error
