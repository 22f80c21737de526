"""Layers that were made before, by the digest of what they follow from.

<store>/layers/<64 hex>   two words: the layer's digest and size; the layer itself is a file of the store
"""

from dataclasses import dataclass
from pathlib import Path

from repro_image.adapters.files import write_text
from repro_image.adapters.store import Store, disk_errors
from repro_image.core.reference import is_digest


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerBlob:
    """An uncompressed layer in the store: its digest, which is its diff ID too, and its size."""

    digest: str
    size_bytes: int


class KeptLayers:
    """The layers of one store. A record is written last and in one step, so nothing half made is found."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, key: str) -> LayerBlob | None:
        """Return the layer that was kept for ``key``; None where none was, or where its file is gone."""
        try:
            digest, _, size = self._path(key).read_text().strip().partition(" ")
        except (OSError, UnicodeDecodeError):
            return None
        if not is_digest(digest) or not size.isdecimal() or not self._store.has(digest, int(size)):
            return None
        return LayerBlob(digest=digest, size_bytes=int(size))

    def keep(self, key: str, file: Path, blob: LayerBlob) -> None:
        """Move ``file``, which lies on the store's file system, into the store; remember it for ``key``."""
        self._store.adopt(file, blob.digest)
        with disk_errors(self._store.root):
            write_text(self._path(key), f"{blob.digest} {blob.size_bytes}\n")

    def _path(self, key: str) -> Path:
        if not is_digest(key):
            raise ValueError(f"not a digest: {key!r}")
        return self._store.root / "layers" / key.removeprefix("sha256:")
