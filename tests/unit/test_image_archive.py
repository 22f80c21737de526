"""adapters/image_archive.py, image_blobs.py: finding one image among the blobs of a layout, proving them."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from repro_image.adapters import image_blobs
from repro_image.adapters.engine import Engine, ImageInfo
from repro_image.adapters.files import Project
from repro_image.adapters.image_archive import read_documents, read_layers
from repro_image.adapters.image_blobs import Blobs, open_path
from repro_image.adapters.ledger_files import Ledger
from repro_image.core.image_files import Layer
from repro_image.core.image_manifest import ImageDocuments
from repro_image.errors import BrokenImageError, ImageMissingError, InvalidReferenceError, WhichImageError
from repro_image.steps.diff import find_image
from tests.ledger_samples import sample_epoch
from tests.unit.made_images import File, Layout, digest_of, layer, layout


@pytest.fixture
def made(tmp_path: Path) -> Layout:
    return layout(tmp_path / "layout", layer(File("f", b"x")))


def both(made: Layout) -> list[Blobs]:
    """Return the layout as a folder and as a tar file."""
    tar = made.tar(made.root.parent / "layout.tar")
    return [open_path(path, name=str(path)) for path in (made.root, tar)]


def layers(blobs: Blobs, documents: ImageDocuments) -> dict[str, Layer]:
    return read_layers(blobs, documents, {}, contents=True, on_layer=lambda _: None)


def test_folder_and_tar_hold_the_same_image(made: Layout) -> None:
    found = [read_documents(blobs) for blobs in both(made)]
    assert found[0].digest == found[1].digest == made.descriptors[0]["digest"]
    assert found[0].diff_ids == found[1].diff_ids
    read = [layers(blobs, documents) for blobs, documents in zip(both(made), found, strict=True)]
    assert read[0] == read[1]


def test_known_layers_are_not_read_again(made: Layout) -> None:
    [blobs, _] = both(made)
    documents = read_documents(blobs)
    known = layers(blobs, documents)
    for path in (made.root / "blobs/sha256").iterdir():
        path.unlink()
    assert read_layers(blobs, documents, known, contents=True, on_layer=pytest.fail) == known


def test_one_of_several_images_is_named_by_a_digest(made: Layout) -> None:
    other = made.image([layer(File("g"))])
    for blobs in both(made):
        with pytest.raises(WhichImageError) as caught:
            read_documents(blobs)
        assert caught.value.known == tuple(each["digest"] for each in made.descriptors)
        found = read_documents(blobs, other)
        assert found.digest == other
        assert read_documents(blobs, found.manifest.config.digest) == found
        with pytest.raises(WhichImageError):
            read_documents(blobs, digest_of(b"none"))
    assert (
        find_image(f"{made.root}@{other}", engine=pytest.fail, project=pytest.fail).documents.digest == other
    )


def test_attestations_and_platforms_that_are_not_there_are_no_images(made: Layout) -> None:
    attestation = {**made.blob(b'{"config":{}}'), "annotations": {"vnd.docker.reference.type": "x"}}
    absent = {**attestation, "digest": digest_of(b"absent"), "annotations": {}}
    inner = json.dumps({"manifests": [*made.descriptors, attestation, absent]}).encode()
    made.descriptors = [made.blob(inner)]
    made.write_index()
    for blobs in both(made):
        assert read_documents(blobs).diff_ids == (digest_of(layer(File("f", b"x"))),)
        assert read_documents(blobs, digest_of(inner)).diff_ids


def test_a_document_that_is_manifest_and_index_is_refused(made: Layout) -> None:
    documents = read_documents(both(made)[0])
    manifest = (made.root / "blobs/sha256" / documents.digest[7:]).read_bytes()
    made.descriptors = [made.blob(manifest[:-1] + b', "manifests": []}')]
    made.write_index()
    for blobs in both(made):
        with pytest.raises(BrokenImageError, match="as a manifest and as an index"):
            read_documents(blobs)


@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
def test_a_blob_that_is_not_its_digest_is_refused(which: str, made: Layout) -> None:
    documents = read_documents(both(made)[0])
    digest = {
        "manifest": documents.digest,
        "config": documents.manifest.config.digest,
        "layer": documents.manifest.layers[0].digest,
    }[which]
    path = made.root / "blobs/sha256" / digest[7:]
    path.write_bytes(path.read_bytes() + b" ")
    for blobs in both(made):
        with pytest.raises(BrokenImageError, match=digest):
            layers(blobs, read_documents(blobs))


def test_a_layer_that_unpacks_to_something_else_is_refused(tmp_path: Path) -> None:
    rootfs = {"type": "layers", "diff_ids": [digest_of(b"other")]}
    made = layout(tmp_path / "layout", layer(), rootfs=rootfs)
    for blobs in both(made):
        with pytest.raises(BrokenImageError, match=rf"diff ID {digest_of(b'other')} is missing"):
            layers(blobs, read_documents(blobs))


def test_a_missing_layer_or_config_is_refused(made: Layout) -> None:
    documents = read_documents(both(made)[0])
    (made.root / "blobs/sha256" / documents.manifest.layers[0].digest[7:]).unlink()
    for blobs in both(made):
        with pytest.raises(BrokenImageError, match="is missing"):
            layers(blobs, documents)
    (made.root / "blobs/sha256" / documents.manifest.config.digest[7:]).unlink()
    for blobs in both(made):
        with pytest.raises(BrokenImageError, match=r"config .* is missing"):
            read_documents(blobs)


@pytest.mark.parametrize(
    "index", [b"", b"{", b"[]", b'{"manifests":[{"digest":"sha256:../../x","size":1}]}', b"[" * 100_000]
)
def test_an_index_that_is_none_is_refused(index: bytes, made: Layout) -> None:
    (made.root / "index.json").write_bytes(index)
    for blobs in both(made):
        with pytest.raises(BrokenImageError, match="its index is not as OCI writes it"):
            read_documents(blobs)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"rootfs": {"diff_ids": []}}, "the manifest names 1 layers, the config 0"),
        ({"rootfs": {"diff_ids": ["x"]}}, "its config is not as OCI writes it"),
        ({"rootfs": None}, "its config is not as OCI writes it"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(config: dict[str, Any], told: str, tmp_path: Path) -> None:
    made = layout(tmp_path / "layout", layer(), **config)
    with pytest.raises(BrokenImageError, match=told):
        read_documents(both(made)[0])


def test_a_config_with_nulls_is_read(tmp_path: Path) -> None:
    made = layout(tmp_path / "layout", layer(), history=None, config=None)
    assert read_documents(both(made)[0]).config.layer_steps == ("",)


def test_a_blob_that_is_a_pipe_does_not_block(made: Layout) -> None:
    documents = read_documents(both(made)[0])
    path = made.root / "blobs/sha256" / documents.manifest.layers[0].digest[7:]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BrokenImageError, match="is missing"):
        layers(open_path(made.root, name="x"), documents)


def test_a_folder_or_file_that_is_no_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\x1f\x8b not a tar")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    for name in (".", "file", "empty.tar"):
        with pytest.raises(BrokenImageError):
            find_image(str(tmp_path / name), engine=pytest.fail, project=pytest.fail)


def test_an_archive_of_endless_members_is_refused(made: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_blobs, "_MAX_MEMBERS", 3)
    with pytest.raises(BrokenImageError, match="more than 3 members"):
        read_documents(both(made)[1])


@pytest.mark.parametrize("text", ["./no/such/thing", "a\0b", "/" + "n" * 5000, ""])
def test_what_is_neither_path_nor_reference_is_a_usage_error(text: str) -> None:
    with pytest.raises(InvalidReferenceError):
        find_image(text, engine=pytest.fail, project=pytest.fail)


class EmptyEngine(Engine):
    """An engine that has no image."""

    def image(self, reference: str) -> ImageInfo | None:
        return None


def test_the_tag_of_an_epoch_is_looked_up_in_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "images/vllm-cpu").mkdir(parents=True)
    (tmp_path / "images/vllm-cpu/image.toml").write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    stored = Ledger(tmp_path / "locks/vllm-cpu", "vllm-cpu").append_epoch(
        lambda number, previous: sample_epoch(number, previous, image_name="vllm-cpu")
    )
    for text in (stored.epoch.tag, f"{stored.epoch.repository}:{stored.epoch.tag}"):
        with pytest.raises(ImageMissingError) as caught:
            find_image(text, engine=EmptyEngine, project=lambda: Project(tmp_path))
        assert caught.value.reference == f"{stored.epoch.repository}:{stored.epoch.tag}"
