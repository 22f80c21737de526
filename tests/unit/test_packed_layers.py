"""Layers as they go to a registry: the same bytes on every machine."""

import io
import os
from pathlib import Path

import pytest
import zstandard

from repro_image.adapters.packed_layers import pack_layer
from repro_image.core.oci import PLAIN_LAYERS, ZSTD_LAYER, Descriptor, Manifest
from repro_image.core.reference import sha256_digest
from repro_image.errors import BrokenImageError

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def descriptor(data: bytes, media_type: str = PLAIN_LAYERS[0]) -> Descriptor:
    return Descriptor(media_type=media_type, digest=sha256_digest(data), size=len(data))


class Trickle(io.BytesIO):
    """A stream that gives what is asked for in small pieces, as a pipe may."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, 70_001))


def test_the_packed_bytes_depend_neither_on_cores_nor_on_how_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(2**20) * 3 + bytes(20 * 2**20)
    found = set()
    for cores, stream in ((1, io.BytesIO(data)), (2, Trickle(data)), (64, io.BytesIO(data))):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        packed = pack_layer(stream, descriptor(data), tmp_path / "layer", image="x")
        content = (tmp_path / "layer").read_bytes()
        assert (packed.media_type, packed.digest, packed.size) == (
            ZSTD_LAYER,
            sha256_digest(content),
            len(content),
        )
        assert zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)).read() == data
        found.add(packed.digest)
    assert len(found) == 1


def test_a_layer_that_is_packed_already_goes_as_it_is(tmp_path: Path) -> None:
    layer = descriptor(b"packed", GZIP)
    assert pack_layer(io.BytesIO(b"packed"), layer, tmp_path / "layer", image="x") == layer
    assert (tmp_path / "layer").read_bytes() == b"packed"


@pytest.mark.parametrize("media_type", [PLAIN_LAYERS[0], GZIP])
def test_bytes_that_are_not_the_layer_s_are_refused(tmp_path: Path, media_type: str) -> None:
    with pytest.raises(BrokenImageError, match="the content of blob"):
        pack_layer(io.BytesIO(b"other"), descriptor(b"layer", media_type), tmp_path / "layer", image="x")


@pytest.mark.parametrize(
    ("media_types", "told"),
    [
        ([ZSTD_LAYER, ZSTD_LAYER], "zstd"),
        ([PLAIN_LAYERS[1]], "uncompressed"),
        ([GZIP, "application/vnd.docker.image.rootfs.diff.tar.gzip"], "gzip"),
        ([GZIP, ZSTD_LAYER], "gzip,zstd"),
        ([], "uncompressed"),
        (["application/x-other"], "unknown"),
    ],
)
def test_a_manifest_tells_how_its_layers_are_packed(media_types: list[str], told: str) -> None:
    layers = tuple(descriptor(b"", media_type) for media_type in media_types)
    assert Manifest(config=descriptor(b"config"), layers=layers).compression == told
