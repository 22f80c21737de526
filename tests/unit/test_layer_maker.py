"""adapters/layer_maker.py: what the container tells, and what becomes of it."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repro_image.adapters.engine import ToolResult
from repro_image.adapters.kept_layers import LayerBlob
from repro_image.adapters.layer_maker import make_layers
from repro_image.core.layer_stages import LayerStage
from repro_image.core.reference import sha256_digest
from repro_image.errors import BuildFailedError, DiskFullError

STAGES = [LayerStage(name=name, script=f"echo {name}", step="COPY") for name in ("one", "two")]
DIGEST = sha256_digest(b"layer")


class FakeEngine:
    """A container that says these lines. jobs: what it was given to do; files_in: each call's options."""

    def __init__(self, *lines: str, exit_code: int = 0) -> None:
        self.lines, self.exit_code = lines, exit_code
        self.jobs: Any = None
        self.files_in: list[list[str]] = []

    def run_tool(self, image: str, command: list[str], **how: Any) -> ToolResult:
        (jobs,) = [mount.source for mount in how["mounts"] if mount.target == command[2]]
        self.jobs = json.loads(jobs.read_text())
        self.files_in.append(how["options"])
        for line in self.lines:
            how["on_line"](line)
        return ToolResult(exit_code=self.exit_code, stdout="", stderr="\n".join(self.lines))


def make(
    engine: FakeEngine,
    folder: Path,
    on_layer: Callable[[str, LayerBlob, Path], None],
    *,
    memory_bytes: int = 0,
) -> None:
    make_layers(
        STAGES,
        root="root",
        contexts=dict.fromkeys(("wheels", "locks", "tools"), str(folder)),
        folder=folder,
        memory_bytes=memory_bytes,
        source_date_epoch=1,
        engine=engine,  # type: ignore[arg-type]
        on_layer=on_layer,
    )


def test_layers_are_told_as_they_come_and_other_lines_are_not_layers(tmp_path: Path) -> None:
    engine = FakeEngine(f"layer two {DIGEST} 5", "layer of dust", "warning: x", f"layer one {DIGEST} 6")
    told = []
    make(engine, tmp_path, lambda *layer: told.append(layer))
    assert engine.jobs == [["one", "echo one"], ["two", "echo two"]]
    assert told == [
        ("two", LayerBlob(digest=DIGEST, size_bytes=5), tmp_path / "layers/two.tar"),
        ("one", LayerBlob(digest=DIGEST, size_bytes=6), tmp_path / "layers/one.tar"),
    ]


def test_a_command_that_fails_is_told_with_its_last_lines(tmp_path: Path) -> None:
    engine = FakeEngine("one: exit code 2", "error: hash mismatch", exit_code=1)
    with pytest.raises(BuildFailedError) as caught:
        make(engine, tmp_path, lambda *_: None)
    assert caught.value.lines == ("one: exit code 2", "error: hash mismatch")


def test_files_lie_in_memory_where_there_is_enough_of_it(tmp_path: Path) -> None:
    engine = FakeEngine(f"layer one {DIGEST} 5", f"layer two {DIGEST} 5")
    make(engine, tmp_path, lambda *_: None, memory_bytes=7000)
    assert engine.files_in == [["--tmpfs", "/out:exec,mode=1777,size=7000"]]


def test_what_fails_in_memory_is_done_again_on_the_disk_but_for_the_layers_that_came(tmp_path: Path) -> None:
    class Engine(FakeEngine):
        def run_tool(self, image: str, command: list[str], **how: Any) -> ToolResult:
            self.exit_code = 0 if self.files_in else 1
            self.lines = (f"layer two {DIGEST} 5",) if self.files_in else (f"layer one {DIGEST} 5", "full")
            return super().run_tool(image, command, **how)

    engine, told = Engine(), []
    make(engine, tmp_path, lambda *layer: told.append(layer[0]), memory_bytes=7000)
    assert told == ["one", "two"]
    assert engine.jobs == [["two", "echo two"]]
    assert [options[0] for options in engine.files_in] == ["--tmpfs", "--mount"]
    assert "target=/out" in engine.files_in[1][1]


def test_a_command_that_fails_in_both_places_is_told(tmp_path: Path) -> None:
    with pytest.raises(BuildFailedError) as caught:
        make(FakeEngine("one: exit code 2", exit_code=1), tmp_path, lambda *_: None, memory_bytes=7000)
    assert caught.value.lines == ("one: exit code 2",)


def test_a_disk_slower_than_the_commands_does_not_hold_up_their_lines(tmp_path: Path) -> None:
    lines, go = [f"layer {name} {DIGEST} 5" for name in ("one", "two")], threading.Event()

    class Engine(FakeEngine):
        def run_tool(self, image: str, command: list[str], **how: Any) -> ToolResult:
            ended = super().run_tool(image, command, **how)
            go.set()  # the container is gone, and no layer is on the disk
            return ended

    told = []
    make(Engine(*lines), tmp_path, lambda *layer: told.append((go.wait(10), layer[0])))
    assert told == [(True, "one"), (True, "two")]


def test_a_layer_that_was_never_told_is_missed_at_once(tmp_path: Path) -> None:
    with pytest.raises(BuildFailedError) as caught:
        make(FakeEngine(f"layer one {DIGEST} 5"), tmp_path, lambda *_: None)
    assert "after 1 of 2 layers" in caught.value.what


def test_a_full_disk_is_told_by_its_own_error(tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise DiskFullError("store", needed_bytes=1, free_bytes=0)

    with pytest.raises(DiskFullError):
        make(FakeEngine(f"layer one {DIGEST} 5", f"layer two {DIGEST} 5"), tmp_path, full)
