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


def make_layers(
    stages: Sequence[LayerStage],
    *,
    root: str,
    contexts: Mapping[str, str],
    folder: Path,
    source_date_epoch: int,
    engine: Engine,
    on_layer: Callable[[str, LayerBlob, Path], None],
) -> None:
    """Make the layers of ``stages`` in their order, several at a time.

    root:     name of the image of the stage `root`.
    contexts: the folders ``wheels``, ``locks`` and ``tools``.
    folder:   empty, on a file system with room for the layers and for the files in them.
    on_layer: called with each layer's stage and file when it is whole, from another thread.
    Raises: BuildFailedError with the commands' last lines.
    """
    out, layers, jobs = folder / "out", folder / "layers", folder / "jobs.json"
    for made in (out, layers):
        made.mkdir()
    jobs.write_text(json.dumps([[stage.name, stage.script] for stage in stages]))
    mounts = [Mount(source=Path(contexts[name]), target=f"/{name}") for name in ("wheels", "locks", "tools")]
    mounts += [
        Mount(source=out, target="/out", read_only=False),
        Mount(source=layers, target="/layers", read_only=False),
        Mount(source=jobs, target="/repro/jobs.json"),
        Mount(source=RUNNER_FOLDER / _WRITER, target=f"/repro/{_WRITER}"),
    ]

    # A disk may be slower than the commands: whoever reads their lines must not wait for it.
    whole: list[Future[None]] = []
    receiver = ThreadPoolExecutor(max_workers=1)

    def on_line(line: str) -> None:
        match line.split(" "):
            case ["layer", name, digest, size] if is_digest(digest) and size.isdecimal():
                blob = LayerBlob(digest=digest, size_bytes=int(size))
                whole.append(receiver.submit(on_layer, name, blob, layers / f"{name}.tar"))

    # Commands use all cores but for moments; a second one fills those.
    workers = str(max(2, (os.cpu_count() or 2) // 4))
    try:
        result = engine.run_tool(
            root,
            ["python3", f"/repro/{_WRITER}", "/repro/jobs.json", workers, str(source_date_epoch)],
            mounts=mounts,
            environment={"HOME": "/tmp"},  # noqa: S108 - a folder inside the container
            timeout_s=_TIMEOUT_S,
            on_line=on_line,
        )
        if result.exit_code != 0 or len(whole) != len(stages):
            so_far = f"after {len(whole)} of {len(stages)} layers"
            raise BuildFailedError(
                "packages",
                reason=f"installing wheels ended with {result.exit_code} {so_far}",
                lines=tuple(result.stderr.splitlines())[-20:],
                path=f"image {root}",
            )
        for one in whole:
            one.result()
    finally:
        receiver.shutdown(cancel_futures=True)
