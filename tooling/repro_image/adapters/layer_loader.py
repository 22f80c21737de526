"""Layers into the engine's store, on top of an image that it has, while others are still being made."""

import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from repro_image.adapters.engine import Engine
from repro_image.adapters.image_archive import read_documents
from repro_image.adapters.image_blobs import has_blob, open_engine
from repro_image.adapters.store import CHUNK_BYTES
from repro_image.core.image_manifest import ImageDocuments
from repro_image.core.layered_image import AddedLayer, blob_path, layered_image
from repro_image.errors import EngineCallError


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyLayer:
    """A layer that lies in a file."""

    layer: AddedLayer
    file: Path


class LayerLoader(threading.Thread):
    """Loads an image's layers in order, each as soon as it is ready and those below it are loaded.

    The engine unpacks a layer on top of the ones below, so it has to get them bottom first; what is ready at
    one time goes in one call. A daemon thread: when this process ends, the connection does, and the engine
    gives up the call.
    """

    def __init__(self, engine: Engine, below: str, *, name: str, count: int, source_date_epoch: int) -> None:
        super().__init__(name="layer-loader", daemon=True)
        self._engine, self._below, self._name = engine, below, name
        self._source_date_epoch = source_date_epoch
        self._slots: list[ReadyLayer | None] = [None] * count
        self._is_closed = False
        self._changed = threading.Condition()
        self._failure: BaseException | None = None

    def put(self, position: int, layer: ReadyLayer) -> None:
        """Take the layer for ``position``, counted from the bottom; from any thread."""
        with self._changed:
            self._slots[position] = layer
            self._changed.notify()

    def close(self) -> None:
        """Wait until all layers are loaded; they all came. Raises: what loading raised."""
        self.give_up()
        self.join()
        if self._failure is not None:
            raise self._failure
        if None in self._slots:
            raise RuntimeError(f"layer {self._slots.index(None)} of {self._name} never came")

    def give_up(self) -> None:
        """Begin no further call, and do not wait for the one that is under way."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def run(self) -> None:
        try:
            documents = self._documents()
            loaded = 0
            while loaded < len(self._slots):
                ready = self._wait(loaded)
                if len(ready) == loaded:
                    return
                self._load(documents, ready, new=ready[loaded:])
                loaded = len(ready)
        except BaseException as error:
            self._failure = error

    def _wait(self, loaded: int) -> list[ReadyLayer]:
        """Return the layers that are ready from the bottom on, more than ``loaded`` unless no more come."""
        with self._changed:
            while True:
                missing = self._slots.index(None) if None in self._slots else len(self._slots)
                if missing > loaded or self._is_closed:
                    return [slot for slot in self._slots[:missing] if slot is not None]
                self._changed.wait()

    def _documents(self) -> ImageDocuments:
        image = self._engine.image(self._below)
        if image is None:
            raise EngineCallError(f"docker image inspect {self._below}", "the image is gone")
        return read_documents(open_engine(self._engine, image, name=self._below))

    def _load(
        self, documents: ImageDocuments, ready: Sequence[ReadyLayer], *, new: Sequence[ReadyLayer]
    ) -> None:
        image = layered_image(
            documents,
            [one.layer for one in ready],
            name=self._name,
            source_date_epoch=self._source_date_epoch,
        )
        missing = [one for one in new if not has_blob(self._engine, one.layer.digest, one.layer.size_bytes)]
        try:
            self._engine.load(_layout(image, missing), name=self._name)
        except EngineCallError:
            if len(missing) == len(new):
                raise
            # The blob was another engine's, or went between the look and the call.
            self._engine.load(_layout(image, new), name=self._name)


def _layout(documents: Mapping[str, bytes], layers: Sequence[ReadyLayer]) -> Iterator[bytes]:
    """Yield an OCI layout as a tar. Layers that the engine has already are left out of it."""
    for one in layers:
        yield _header(blob_path(one.layer.digest), one.layer.size_bytes)
        with one.file.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
        yield bytes(-one.layer.size_bytes % tarfile.BLOCKSIZE)
    for path, data in documents.items():
        yield _header(path, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(path: str, size_bytes: int) -> bytes:
    member = tarfile.TarInfo(path)
    member.size = size_bytes
    return member.tobuf(tarfile.GNU_FORMAT)
