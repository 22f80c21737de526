"""Layers as they go to a registry: proved while they are read, packed with zstd on all cores."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from repro_image.adapters.store import CHUNK_BYTES, disk_errors
from repro_image.core.oci import PLAIN_LAYERS, ZSTD_LAYER, Descriptor
from repro_image.errors import BrokenImageError

# Part of what a packed layer's digest depends on, as the library's version is. The number of threads is not,
# as long as there is at least one: each packs blocks of a fixed size.
_LEVEL = 3
# Each thread takes 8 MiB; more than this fill no line that leads to a registry.
_MOST_THREADS = 8


def pack_layer(stream: BinaryIO, layer: Descriptor, target: Path, *, image: str) -> Descriptor:
    """Write a layer to ``target`` as it is pushed, packed unless it is; return what it became.

    Raises: BrokenImageError when the bytes are not those of the layer's digest; DiskFullError, StoreError.
    """
    if layer.media_type not in PLAIN_LAYERS:
        with disk_errors(target), target.open("wb") as writer:
            for chunk in _proved(stream, layer, image=image):
                writer.write(chunk)
        return layer
    packed = hashlib.sha256()
    with disk_errors(target), target.open("wb") as writer:
        for chunk in _packed(_proved(stream, layer, image=image)):
            packed.update(chunk)
            writer.write(chunk)
        size = writer.tell()
    return Descriptor(media_type=ZSTD_LAYER, digest=f"sha256:{packed.hexdigest()}", size=size)


def _packed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard

    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    packer = zstandard.ZstdCompressor(level=_LEVEL, threads=threads, write_checksum=True).compressobj()
    for chunk in chunks:
        yield packer.compress(chunk)
    yield packer.flush()


def _proved(stream: BinaryIO, layer: Descriptor, *, image: str) -> Iterator[bytes]:
    found = hashlib.sha256()
    with contextlib.closing(stream):
        while chunk := stream.read(CHUNK_BYTES):
            found.update(chunk)
            yield chunk
    if f"sha256:{found.hexdigest()}" != layer.digest:
        told = f"the content of blob {layer.digest} is sha256:{found.hexdigest()}"
        raise BrokenImageError(told, image=image)
