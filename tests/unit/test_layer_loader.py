"""adapters/layer_loader.py: layers go in bottom first, together where they are ready together."""

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repro_image.adapters import layer_loader
from repro_image.adapters.layer_loader import LayerLoader, ReadyLayer
from repro_image.core.image_manifest import parse_documents
from repro_image.core.layered_image import AddedLayer, blob_path
from repro_image.core.reference import sha256_digest
from repro_image.errors import EngineCallError

NAMES = ("127.0.0.1:1/repro-image/packages:1", "127.0.0.1:1/repro-image/packages:1-next")
ROOT = sha256_digest(b"root")


class FakeEngine:
    """Keeps what is loaded. owned: digests of blobs that it has already; failures: how many loads fail."""

    def __init__(
        self, owned: tuple[str, ...] = (), failures: int = 0, reason: str = "no space left on device"
    ) -> None:
        self.loads: list[dict[str, bytes]] = []
        self.names: list[str] = []
        self.owned, self.failures, self.reason = owned, failures, reason

    def image(self, reference: str) -> Any:
        return SimpleNamespace(id=reference)

    def load(self, archive: Iterator[bytes], *, name: str) -> None:
        data = io.BytesIO(b"".join(archive))
        self.names.append(name)
        if self.failures:
            self.failures -= 1
            raise EngineCallError("docker load", self.reason)
        with tarfile.open(fileobj=data) as found:
            self.loads.append({member.name: found.extractfile(member).read() for member in found})  # type: ignore[union-attr]

    def diff_ids(self) -> list[list[str]]:
        """Of each load: the layers of its image above the root."""
        return [config_of(files)["rootfs"]["diff_ids"][1:] for files in self.loads]


def config_of(files: dict[str, bytes]) -> Any:
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] in NAMES
    manifest = json.loads(files[blob_path(entry["digest"])])
    return json.loads(files[blob_path(manifest["config"]["digest"])])


@pytest.fixture
def layers(tmp_path: Path) -> list[ReadyLayer]:
    made = []
    for number in range(3):
        data = f"layer {number}".encode()
        (tmp_path / f"{number}.tar").write_bytes(data)
        added = AddedLayer(digest=sha256_digest(data), size_bytes=len(data), step=f"COPY {number}")
        made.append(ReadyLayer(layer=added, file=tmp_path / f"{number}.tar"))
    return made


def loader(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> LayerLoader:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [ROOT]},
        "history": [{"comment": "Imported from -"}],
    }
    manifest = {
        "config": {"mediaType": "config", "digest": ROOT, "size": 1},
        "layers": [{"mediaType": "gzip", "digest": ROOT, "size": 7}],
    }
    documents = parse_documents("root", ROOT, json.dumps(manifest).encode(), json.dumps(config).encode())
    monkeypatch.setattr(layer_loader, "open_engine", lambda *_, **__: None)
    monkeypatch.setattr(layer_loader, "read_documents", lambda _: documents)
    monkeypatch.setattr(layer_loader, "has_blob", lambda engine, digest, _: digest in engine.owned)
    return LayerLoader(engine, "root", names=NAMES, count=3, source_date_epoch=1)  # type: ignore[arg-type]


def test_layers_that_are_ready_together_go_in_one_call_as_one_image(
    monkeypatch: pytest.MonkeyPatch, layers: list[ReadyLayer]
) -> None:
    engine = FakeEngine()
    loading = loader(monkeypatch, engine)
    for position, layer in enumerate(layers):
        loading.put(position, layer)
    loading.start()
    loading.close()
    digests = [one.layer.digest for one in layers]
    assert engine.diff_ids() == [digests]
    files = engine.loads[0]
    assert [files[blob_path(digest)] for digest in digests] == [b"layer 0", b"layer 1", b"layer 2"]
    assert blob_path(ROOT) not in files
    config = config_of(files)
    assert config["config"] == {"Env": ["PATH=/bin"]}
    assert config["history"] == [
        {"comment": "Imported from -"},
        *(
            {"created": "1970-01-01T00:00:01Z", "created_by": step, "comment": "buildkit.dockerfile.v0"}
            for step in ("COPY 0", "COPY 1", "COPY 2")
        ),
    ]


def test_a_layer_waits_for_those_below_it(monkeypatch: pytest.MonkeyPatch, layers: list[ReadyLayer]) -> None:
    engine = FakeEngine()
    loading = loader(monkeypatch, engine)
    loading.start()
    loading.put(2, layers[2])
    loading.put(1, layers[1])
    assert engine.loads == []
    loading.put(0, layers[0])
    loading.close()
    assert engine.diff_ids()[-1] == [one.layer.digest for one in layers]


def test_what_the_engine_has_is_named_and_not_sent(
    monkeypatch: pytest.MonkeyPatch, layers: list[ReadyLayer]
) -> None:
    engine = FakeEngine(owned=(layers[1].layer.digest,))
    loading = loader(monkeypatch, engine)
    for position, layer in enumerate(layers):
        loading.put(position, layer)
    loading.start()
    loading.close()
    assert engine.diff_ids() == [[one.layer.digest for one in layers]]
    sent = [one.layer.digest for one in layers if blob_path(one.layer.digest) in engine.loads[0]]
    assert sent == [layers[0].layer.digest, layers[2].layer.digest]


def test_what_the_engine_had_after_all_not_is_sent(
    monkeypatch: pytest.MonkeyPatch, layers: list[ReadyLayer]
) -> None:
    engine = FakeEngine(owned=(layers[1].layer.digest,), failures=1)
    loading = loader(monkeypatch, engine)
    for position, layer in enumerate(layers):
        loading.put(position, layer)
    loading.start()
    loading.close()
    assert all(blob_path(one.layer.digest) in engine.loads[0] for one in layers)


def test_layers_that_the_engine_cleared_away_while_it_looked_are_unpacked_again(
    monkeypatch: pytest.MonkeyPatch, layers: list[ReadyLayer]
) -> None:
    engine = FakeEngine(failures=1, reason="parent snapshot sha256:0 does not exist: not found")
    load_one_by_one(monkeypatch, engine, layers).close()
    assert engine.diff_ids()[-1] == [one.layer.digest for one in layers]


class UnpackingEngine(FakeEngine):
    """Unpacks no layer of the first call before the second call's layers have come.

    seen: what came and what was unpacked, in order, as the layers' numbers.
    """

    def __init__(self, *, is_full: bool = False) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.is_full = is_full
        self._second_came = threading.Event()

    def load(self, archive: Iterator[bytes], *, name: str) -> None:
        number = ""
        for piece in archive:
            if piece.startswith(b"layer "):
                number = piece[6:].decode()
                self.seen.append(f"{number} came")
                if number == "1":
                    self._second_came.set()
        if number == "0":
            assert self._second_came.wait(10)
            if self.is_full:
                raise EngineCallError("docker load", "no space left on device")
        self.seen.append(f"{number} unpacked")


def load_one_by_one(
    monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, layers: list[ReadyLayer]
) -> LayerLoader:
    monkeypatch.setattr(layer_loader, "_CALL_BYTES", 1)
    loading = loader(monkeypatch, engine)
    for position, layer in enumerate(layers):
        loading.put(position, layer)
    loading.start()
    return loading


def test_layers_are_handed_over_while_those_below_are_unpacked(
    monkeypatch: pytest.MonkeyPatch, layers: list[ReadyLayer]
) -> None:
    engine = UnpackingEngine()
    load_one_by_one(monkeypatch, engine, layers).close()
    assert engine.seen.index("1 came") < engine.seen.index("0 unpacked")
    unpacked = [line for line in engine.seen if line.endswith("unpacked")]
    assert unpacked == ["0 unpacked", "1 unpacked", "2 unpacked"]
    assert engine.seen.index("2 came") > engine.seen.index("0 unpacked")  # two calls at a time


def test_an_image_keeps_its_name_while_the_next_is_unpacked_on_top_of_it(
    monkeypatch: pytest.MonkeyPatch, layers: list[ReadyLayer]
) -> None:
    engine = FakeEngine()
    name = load_one_by_one(monkeypatch, engine, layers).close()
    assert engine.names == [NAMES[0], NAMES[1], NAMES[0]]
    assert name == NAMES[0]
    written = [json.loads(files["index.json"])["manifests"][0]["annotations"] for files in engine.loads]
    assert [annotations["io.containerd.image.name"] for annotations in written] == engine.names


def test_nothing_is_unpacked_on_top_of_what_could_not_be(
    monkeypatch: pytest.MonkeyPatch, layers: list[ReadyLayer]
) -> None:
    engine = UnpackingEngine(is_full=True)
    with pytest.raises(EngineCallError, match="no space left"):
        load_one_by_one(monkeypatch, engine, layers).close()
    assert sorted(engine.seen) == ["0 came", "1 came"]


def test_what_loading_raised_is_raised_at_the_end(
    monkeypatch: pytest.MonkeyPatch, layers: list[ReadyLayer]
) -> None:
    loading = loader(monkeypatch, FakeEngine(failures=1))
    loading.start()
    loading.put(0, layers[0])
    with pytest.raises(EngineCallError, match="no space left"):
        loading.close()


def test_an_image_that_lacks_a_layer_is_never_taken_for_whole(
    monkeypatch: pytest.MonkeyPatch, layers: list[ReadyLayer]
) -> None:
    loading = loader(monkeypatch, FakeEngine())
    loading.start()
    loading.put(0, layers[0])
    loading.put(2, layers[2])
    with pytest.raises(RuntimeError, match="layer 1 of"):
        loading.close()
