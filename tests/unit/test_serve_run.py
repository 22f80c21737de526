"""A serving run with containers that end as told; tests/e2e/test_serve.py has real ones."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from repro_image.adapters import serve_run
from repro_image.adapters.engine import Engine, ToolResult
from repro_image.adapters.serve_run import ServeRun, run_serving
from repro_image.core.golden import recorded_request
from repro_image.core.serving import ServedLoad, ServeInput, ServeOutput, background, served_part
from repro_image.errors import ForeignOutputError, ServingError
from tests.unit.made_goldens import make_golden

GOLDEN = served_part(make_golden())


@dataclass
class FakeTool:
    """Ends with ``result``, or never where that is None."""

    result: ToolResult | None
    stderr: str = "one line of the log"

    def wait(self, *, timeout_s: float) -> ToolResult | None:
        return self.result


class FakeEngine(Engine):
    """Keeps both calls; the client calls ``answer`` with what it is asked and its output file."""

    def __init__(
        self, *, server: ToolResult | None, client: ToolResult | None, answer: Callable[[ServeInput], bytes]
    ) -> None:
        self.results, self.answer = [server, client], answer
        self.calls: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def started_tool(self, image: str, command: Sequence[str], **settings: Any) -> Iterator[Any]:
        self.calls.append({"image": image, "command": list(command), **settings})
        sources = {mount.target: mount.source for mount in settings["mounts"]}
        if "/out" in sources:
            asked = msgspec.json.decode(sources["/repro/request.json"].read_bytes(), type=ServeInput)
            if data := self.answer(asked):
                (sources["/out"] / "answer.json").write_bytes(data)
        yield FakeTool(self.results[len(self.calls) - 1])


def ended(code: int, stderr: str = "") -> ToolResult:
    return ToolResult(exit_code=code, stdout="", stderr=stderr)


def good(asked: ServeInput) -> bytes:
    loads = tuple(
        ServedLoad(streams=n, completions=GOLDEN.completions, requests=0, in_flight=0.0, seconds=1.0)
        for n in asked.loads
    )
    return msgspec.json.encode(ServeOutput(nonce=asked.nonce, loads=loads))


@pytest.fixture
def run(tmp_path: Path) -> ServeRun:
    (tmp_path / "model").mkdir()
    return ServeRun(
        image="sha256:aa",
        model=tmp_path / "model",
        engine={"max_num_seqs": 3, "enforce_eager": True},
        environment={"OMP_NUM_THREADS": "2"},
        request=recorded_request(GOLDEN),
        loads=(0, 2),
        background=tuple(background(42, stream, longest=64) for stream in range(2)),
        cpuset="0,1",
        memory_gib=4,
        timeout_s=60,
    )


def serve(run: ServeRun, folder: Path, **engine: Any) -> tuple[FakeEngine, tuple[ServedLoad, ...]]:
    made = FakeEngine(**{"server": None, "client": ended(0), "answer": good, **engine})
    private = folder / "private"
    private.mkdir()
    return made, run_serving(run, engine=made, folder=private, report=lambda *_: None)


def test_server_and_client_share_a_socket_and_nothing_else(run: ServeRun, tmp_path: Path) -> None:
    engine, loads = serve(run, tmp_path)
    assert [load.streams for load in loads] == [0, 2]
    server, client = engine.calls
    assert all("network" not in call for call in engine.calls)  # none, unless asked for
    assert server["command"][2:] == [
        "/model",
        "--uds=/serve/vllm.sock",
        "--enforce-eager",
        "--max-num-seqs=3",
    ]
    writable = [[m.target for m in call["mounts"] if not m.read_only] for call in engine.calls]
    assert writable == [["/serve"], ["/serve", "/out"]]
    assert all("--cpuset-cpus" in call["options"] and "--memory" in call["options"] for call in engine.calls)
    assert client["environment"] == {"HOME": "/tmp"}
    assert not any(call["user"].startswith("0:") for call in engine.calls)


def test_a_server_that_ends_is_told_with_its_log(run: ServeRun, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="the server ended with 3") as caught:
        serve(run, tmp_path, server=ended(3, "a\nout of memory\n"), client=None)
    assert caught.value.log == ("a", "out of memory")


def test_a_client_that_fails_is_told_with_its_reason_and_the_log_of_the_server(
    run: ServeRun, tmp_path: Path
) -> None:
    with pytest.raises(ServingError, match="serving failed in phase 2 streams: APITimeoutError") as caught:
        serve(run, tmp_path, client=ended(1, "x\nserving failed in phase 2 streams: APITimeoutError: late\n"))
    assert caught.value.log == ("one line of the log",)


def test_a_run_without_an_end_is_stopped(run: ServeRun, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="did not answer everything within 0 s"):
        serve(replace(run, timeout_s=0), tmp_path, client=None)


@pytest.mark.parametrize("data", [b"", b"{}", b"not JSON"])
def test_an_answer_that_is_none_is_refused(run: ServeRun, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ServingError):
        serve(run, tmp_path, answer=lambda _: data)


def test_an_answer_of_another_run_is_refused(run: ServeRun, tmp_path: Path) -> None:
    with pytest.raises(ForeignOutputError):
        serve(run, tmp_path, answer=lambda asked: good(msgspec.structs.replace(asked, nonce="other")))


def test_an_answer_of_other_loads_is_refused(run: ServeRun, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="other loads"):
        serve(run, tmp_path, answer=lambda asked: good(msgspec.structs.replace(asked, loads=(0,))))


def test_an_answer_that_lacks_a_prompt_is_refused(run: ServeRun, tmp_path: Path) -> None:
    def cut(asked: ServeInput) -> bytes:
        output = msgspec.json.decode(good(asked), type=ServeOutput)
        loads = tuple(msgspec.structs.replace(x, completions=x.completions[1:]) for x in output.loads)
        return msgspec.json.encode(msgspec.structs.replace(output, loads=loads))

    with pytest.raises(ServingError, match="does not fit the request"):
        serve(run, tmp_path, answer=cut)


def test_an_endless_answer_is_refused(run: ServeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_run, "_MAX_OUTPUT_BYTES", 10)
    with pytest.raises(ServingError, match="endless"):
        serve(run, tmp_path)
