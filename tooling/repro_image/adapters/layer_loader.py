"""Layers into the engine's store, on top of an image that it has, while others are still being made."""

import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

from repro_image.adapters.engine import Engine
from repro_image.adapters.image_archive import read_documents
from repro_image.adapters.image_blobs import has_blob, open_engine
from repro_image.adapters.store import CHUNK_BYTES
from repro_image.core.image_manifest import ImageDocuments
from repro_image.core.layered_image import AddedLayer, blob_path, layered_image
from repro_image.errors import EngineCallError

_CALL_BYTES = 128 * 2**20
_GONE = "parent snapshot"  # the engine's words where a layer below was cleared away while it looked


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyLayer:
    """A layer that lies in a file."""

    layer: AddedLayer
    file: Path


class _Call(threading.Thread):
    """One load. Its layers are handed over at once, and unpacked when the call before it has ended."""

    def __init__(self, load: Callable[[Callable[[], None]], None], *, before: "_Call | None") -> None:
        super().__init__(name="layer-call", daemon=True)
        self._load, self._before = load, before
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._load(self._wait_for_turn)
        except BaseException as error:
            self._failure = error

    def _wait_for_turn(self) -> None:
        if self._before is not None:
            self._before.end()
            self._before = None

    def end(self) -> None:
        """Wait until the call has ended. Raises: what it raised."""
        self.join()
        if self._failure is not None:
            raise self._failure


class LayerLoader(threading.Thread):
    """Loads an image's layers in order, each as soon as it is ready and those below it are loaded.

    The engine unpacks a layer on top of the ones below, so it has to get them bottom first, one call after
    the other; while it unpacks the layers of one, those of the next are handed over. Daemon threads: when
    this process ends, the connections do, and the engine gives up the calls.

    names: two, which the calls' images get in turns. An image without a name is cleared away while the next
           one is unpacked on top of it, so it keeps its name until that one is whole.
    """

    def __init__(
        self, engine: Engine, below: str, *, names: tuple[str, str], count: int, source_date_epoch: int
    ) -> None:
        super().__init__(name="layer-loader", daemon=True)
        self._engine, self._below, self._names = engine, below, names
        self._source_date_epoch = source_date_epoch
        self._calls = 0
        self._slots: list[ReadyLayer | None] = [None] * count
        self._is_closed = False
        self._changed = threading.Condition()
        self._failure: BaseException | None = None

    def put(self, position: int, layer: ReadyLayer) -> None:
        """Take the layer for ``position``, counted from the bottom; from any thread."""
        with self._changed:
            self._slots[position] = layer
            self._changed.notify()

    def close(self) -> str:
        """Wait until all layers are loaded, which all came, and return which of the names has them.

        Raises: what loading raised.
        """
        self.give_up()
        self.join()
        if self._failure is not None:
            raise self._failure
        if None in self._slots:
            raise RuntimeError(f"layer {self._slots.index(None)} of {self._names[0]} never came")
        return self._names[(self._calls - 1) % 2]

    def give_up(self) -> None:
        """Begin no further call, and do not wait for the one that is under way."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def run(self) -> None:
        try:
            documents = self._documents()
            sent, last = 0, _Call(lambda _: None, before=None)
            last.start()
            while sent < len(self._slots):
                ready = self._wait(sent)
                if len(ready) == sent:
                    break
                ready = ready[: sent + _in_one_call(ready[sent:])]
                name = self._names[self._calls % 2]
                load = partial(self._load, documents, ready, ready[sent:], name)
                before, last = last, _Call(load, before=last)
                last.start()
                self._calls += 1
                sent = len(ready)
                before.end()
            last.end()
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
        self,
        documents: ImageDocuments,
        ready: Sequence[ReadyLayer],
        new: Sequence[ReadyLayer],
        name: str,
        wait_for_turn: Callable[[], None],
    ) -> None:
        image = layered_image(
            documents,
            [one.layer for one in ready],
            name=name,
            source_date_epoch=self._source_date_epoch,
        )
        missing = [one for one in new if not has_blob(self._engine, one.layer.digest, one.layer.size_bytes)]
        try:
            self._engine.load(_layout(image, missing, wait_for_turn), name=name)
        except EngineCallError as error:
            if len(missing) == len(new) and _GONE not in str(error):
                raise
            # The blob was another engine's, or it, or what an interrupted build left, went meanwhile.
            self._engine.load(_layout(image, new, wait_for_turn), name=name)


def _in_one_call(layers: Sequence[ReadyLayer]) -> int:
    """Return how many of ``layers`` go in the next call: one, and more while they are small."""
    ends = accumulate(one.layer.size_bytes for one in layers)
    return max(1, sum(end <= _CALL_BYTES for end in ends))


def _layout(
    documents: Mapping[str, bytes], layers: Sequence[ReadyLayer], wait_for_turn: Callable[[], None]
) -> Iterator[bytes]:
    """Yield an OCI layout as a tar. Layers that the engine has already are left out of it.

    The documents come last; the engine unpacks nothing before it has them.
    """
    for one in layers:
        yield _header(blob_path(one.layer.digest), one.layer.size_bytes)
        with one.file.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
        yield bytes(-one.layer.size_bytes % tarfile.BLOCKSIZE)
    wait_for_turn()
    for path, data in documents.items():
        yield _header(path, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(path: str, size_bytes: int) -> bytes:
    member = tarfile.TarInfo(path)
    member.size = size_bytes
    return member.tobuf(tarfile.GNU_FORMAT)
