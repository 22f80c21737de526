"""adapters/kept_layers.py: a layer is found again under its key, or is not there at all."""

from pathlib import Path

import pytest

from repro_image.adapters.kept_layers import KeptLayers, LayerBlob
from repro_image.adapters.store import Store
from repro_image.core.reference import sha256_digest

KEY = sha256_digest(b"key")
LAYER = LayerBlob(digest=sha256_digest(b"layer"), size_bytes=5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def keep(store: Store) -> KeptLayers:
    kept = KeptLayers(store)
    with store.workspace() as folder:
        (folder / "layer.tar").write_bytes(b"layer")
        kept.keep(KEY, folder / "layer.tar", LAYER)
    return kept


def test_a_kept_layer_is_found_by_its_key_and_lies_in_the_store(store: Store) -> None:
    assert keep(store).find(KEY) == LAYER
    assert store.path(LAYER.digest).read_bytes() == b"layer"
    assert KeptLayers(store).find(sha256_digest(b"other")) is None


@pytest.mark.parametrize("record", [b"", b"sha256:1 5", b"\xff", f"{LAYER.digest} five".encode(), b"x" * 100])
def test_a_record_that_is_not_whole_is_no_record(store: Store, record: bytes) -> None:
    kept = keep(store)
    (file,) = (store.root / "layers").iterdir()
    file.write_bytes(record)
    assert kept.find(KEY) is None


def test_a_layer_whose_file_is_gone_or_cut_is_made_again(store: Store) -> None:
    kept = keep(store)
    store.path(LAYER.digest).write_bytes(b"lay")
    assert kept.find(KEY) is None
    store.path(LAYER.digest).unlink()
    assert kept.find(KEY) is None
