"""What an image answers when it is asked for its GPUs; tests/integration has real containers."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from repro_image.adapters import gpu_container
from repro_image.adapters.engine import Engine, Mount, ToolResult
from repro_image.adapters.gpu_container import probe_inside
from repro_image.core.gpu import NvidiaDriver
from repro_image.errors import GpuProbeError

GOOD = '{"driver": {"version": "580.95.05", "cuda": "13.0"}, "gpus": []}\n'


class FakeEngine(Engine):
    """Answers like an image that prints ``stdout``."""

    def __init__(self, stdout: str = GOOD, *, exit_code: int = 0, stderr: str = "") -> None:
        self.result = ToolResult(exit_code=exit_code, stdout=stdout, stderr=stderr)
        self.call: dict[str, Any] = {}

    def run_tool(
        self,
        image: str,
        command: Sequence[str],
        *,
        mounts: Sequence[Mount] = (),
        environment: Mapping[str, str] | None = None,
        gpus: Sequence[str] = (),
        **others: Any,
    ) -> ToolResult:
        self.call = {"command": command, "mounts": mounts, "environment": environment, "gpus": gpus, **others}
        return self.result


def test_the_probe_is_mounted_read_only_and_runs_as_nobody_special() -> None:
    engine = FakeEngine()
    found = probe_inside(engine, "an-image", gpus=["GPU-1"], environment={"A": "1"})
    assert found == (NvidiaDriver(version="580.95.05", cuda="13.0"), ())
    assert engine.call["command"] == ["python3", "/repro/gpu_probe.py"]
    assert [(mount.source.name, mount.read_only) for mount in engine.call["mounts"]] == [
        ("gpu_probe.py", True)
    ]
    assert (engine.call["gpus"], engine.call["environment"]) == (["GPU-1"], {"A": "1"})
    assert engine.call["user"] == "1000:1000"
    assert "network" not in engine.call


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (FakeEngine("", exit_code=3, stderr="No module named 'pynvml'"), "its Python has no module pynvml"),
        (FakeEngine("", exit_code=127, stderr="no python3\n"), "the probe ended with 127: no python3"),
        (FakeEngine(""), "the answer is not in the probe's form"),
        (FakeEngine("hello\n" + GOOD), "the answer is not in the probe's form"),
        (FakeEngine(GOOD.replace("}, ", ', "more": 1}, ')), "the answer is not in the probe's form"),
        (FakeEngine(GOOD.replace("13.0", "13.0; rm")), "the answer is not in the probe's form"),
        (FakeEngine("[" * 100_000), "the answer is not in the probe's form"),
        (FakeEngine(" " * (gpu_container._MAX_OUTPUT_BYTES + 1)), "the answer is longer than"),
    ],
)
def test_an_image_that_answers_something_else_is_told(engine: FakeEngine, reason: str) -> None:
    with pytest.raises(GpuProbeError) as caught:
        probe_inside(engine, "an-image", gpus=["GPU-1"])
    assert caught.value.reason.startswith(reason)
    assert caught.value.image == "an-image"
