"""Layers made from wheels: the Dockerfile's own commands, run in a container of its stage `root`."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from repro_image.adapters.engine import Engine, Mount
from repro_image.adapters.kept_layers import LayerBlob
from repro_image.adapters.shipped import RUNNER_FOLDER
from repro_image.core.layer_stages import LayerStage
from repro_image.core.reference import is_digest
from repro_image.errors import BuildFailedError

_TIMEOUT_S = 3600
_WRITER = "layer_writer.py"

OnLayer = Callable[[str, LayerBlob, Path], None]


def made_at_once() -> int:
    """Return how many layers are made at a time: commands leave cores idle for moments; others fill those."""
    return max(2, (os.cpu_count() or 2) // 4)


def make_layers(
    stages: Sequence[LayerStage],
    *,
    root: str,
    contexts: Mapping[str, str],
    folder: Path,
    memory_bytes: int,
    source_date_epoch: int,
    engine: Engine,
    on_layer: OnLayer,
) -> None:
    """Make the layers of ``stages`` in their order, several at a time.

    root:         name of the image of the stage `root`.
    contexts:     the folders ``wheels``, ``locks`` and ``tools``.
    folder:       empty, on a file system with room for the layers and for the files in them.
    memory_bytes: where the commands leave their files: in so much memory, and on the disk where that fails;
                  0: on the disk at once.
    on_layer:     called with each layer's stage and file when it is whole, from another thread.
    Raises: BuildFailedError with the commands' last lines.
    """
    maker = _Maker(
        root, contexts, folder, source_date_epoch=source_date_epoch, engine=engine, on_layer=on_layer
    )
    # Somebody else may have taken the memory since it was looked at. What the commands themselves do wrong,
    # they do again on the disk.
    if (
        memory_bytes
        and maker.make(stages, files_in=["--tmpfs", f"/out:exec,mode=1777,size={memory_bytes}"]) is None
    ):
        return
    out = folder / "out"
    out.mkdir()
    rest = [stage for stage in stages if stage.name not in maker.made]
    failure = maker.make(
        rest, files_in=["--mount", Mount(source=out, target="/out", read_only=False).argument]
    )
    if failure is not None:
        raise failure


class _Maker:
    """Makes layers, one container at a time. made: the stages whose layers are whole."""

    def __init__(
        self,
        root: str,
        contexts: Mapping[str, str],
        folder: Path,
        *,
        source_date_epoch: int,
        engine: Engine,
        on_layer: OnLayer,
    ) -> None:
        self._root, self._epoch, self._engine = root, source_date_epoch, engine
        self._layers, self._jobs, self._on_layer = folder / "layers", folder / "jobs.json", on_layer
        self._layers.mkdir()
        self._mounts = [
            *(Mount(source=Path(contexts[name]), target=f"/{name}") for name in ("wheels", "locks", "tools")),
            Mount(source=self._layers, target="/layers", read_only=False),
            Mount(source=self._jobs, target="/repro/jobs.json"),
            Mount(source=RUNNER_FOLDER / _WRITER, target=f"/repro/{_WRITER}"),
        ]
        self.made: set[str] = set()

    def make(self, stages: Sequence[LayerStage], *, files_in: Sequence[str]) -> BuildFailedError | None:
        """Make the layers of ``stages``; return why not all of them came.

        files_in: the engine's options that give the container a folder /out. Raises: what on_layer raised.
        """
        self._jobs.write_text(json.dumps([[stage.name, stage.script] for stage in stages]))
        # A disk may be slower than the commands: whoever reads their lines must not wait for it.
        whole: list[Future[None]] = []
        receiver = ThreadPoolExecutor(max_workers=1)

        def on_line(line: str) -> None:
            match line.split(" "):
                case ["layer", name, digest, size] if is_digest(digest) and size.isdecimal():
                    blob = LayerBlob(digest=digest, size_bytes=int(size))
                    self.made.add(name)
                    whole.append(receiver.submit(self._on_layer, name, blob, self._layers / f"{name}.tar"))

        try:
            result = self._engine.run_tool(
                self._root,
                ["python3", f"/repro/{_WRITER}", "/repro/jobs.json", str(made_at_once()), str(self._epoch)],
                mounts=self._mounts,
                environment={"HOME": "/tmp"},  # noqa: S108 - a folder inside the container
                options=files_in,
                timeout_s=_TIMEOUT_S,
                on_line=on_line,
            )
            for one in whole:
                one.result()
        finally:
            receiver.shutdown(cancel_futures=True)
        if result.exit_code == 0 and len(whole) == len(stages):
            return None
        so_far = f"after {len(whole)} of {len(stages)} layers"
        return BuildFailedError(
            "packages",
            reason=f"installing wheels ended with {result.exit_code} {so_far}",
            lines=tuple(result.stderr.splitlines())[-20:],
            path=f"image {self._root}",
        )
