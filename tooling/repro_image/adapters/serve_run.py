"""One serving run: vLLM's server and a client in two new containers that share one socket, and no network."""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from repro_image.adapters.container import give_to_container, log_tail, parse_progress
from repro_image.adapters.engine import Engine, Mount, RunningTool
from repro_image.adapters.shipped import RUNNER_FOLDER
from repro_image.core.golden import GoldenRequest, wrong_shape
from repro_image.core.project import EngineValue
from repro_image.core.serving import Arrival, ServedLoad, ServeInput, ServeOutput, server_flags
from repro_image.errors import ForeignOutputError, ServingError

_SOCKET = "/serve/vllm.sock"
_MODEL = "/model"
_CLIENT_MEMORY = "2g"
_MAX_OUTPUT_BYTES = 256 * 2**20
_LOOK_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeRun:
    """How one server is started and asked.

    engine:      arguments of ``vllm.LLM``; the server gets them as flags.
    environment: of the server.
    cpuset:      cores of server and client.
    loads, background: as in core/serving.py.
    timeout_s:   for the server's start, for one request, and for all prompts under one load.
    """

    image: str
    model: Path
    engine: Mapping[str, EngineValue]
    environment: Mapping[str, str]
    request: GoldenRequest
    loads: tuple[int, ...]
    background: tuple[tuple[Arrival, ...], ...]
    cpuset: str
    memory_gib: int
    timeout_s: int
    gpus: tuple[str, ...] = ()


def run_serving(
    run: ServeRun, *, engine: Engine, folder: Path, report: Callable[[str, int, int], None]
) -> tuple[ServedLoad, ...]:
    """Serve the model, ask the golden prompts under each load and return what was answered.

    folder: empty and private to this run.
    report: called with (phase, done, total) from another thread.
    Raises: ServingError with the end of the server's log; ForeignOutputError; EngineCallError.
    """
    asked = ServeInput(
        nonce=secrets.token_hex(32),
        request=run.request,
        loads=run.loads,
        background=run.background,
        start_s=run.timeout_s,
        request_s=run.timeout_s,
    )
    shared, out = folder / "serve", folder / "out"
    for path in (shared, out):
        path.mkdir(mode=0o700)
        user = give_to_container(path)
    request = folder / "request.json"
    request.write_bytes(msgspec.json.encode(asked))
    request.chmod(0o644)

    def on_line(line: str) -> None:
        progress = parse_progress(line)
        if progress is not None:
            report(*progress)

    socket = Mount(source=shared, target="/serve", read_only=False)
    client_script = Mount(source=RUNNER_FOLDER / "serve_client.py", target="/repro/serve_client.py")
    server_script = Mount(source=RUNNER_FOLDER / "serve_server.py", target="/repro/serve_server.py")
    with (
        engine.started_tool(
            run.image,
            ["python3", server_script.target, _MODEL, f"--uds={_SOCKET}", *server_flags(run.engine)],
            mounts=[server_script, socket, Mount(source=run.model.resolve(), target=_MODEL)],
            environment={**run.environment, "HOME": "/tmp"},  # noqa: S108 - inside the container
            user=user,
            gpus=run.gpus,
            options=["--cpuset-cpus", run.cpuset, "--memory", f"{run.memory_gib}g", "--shm-size", "1g"],
        ) as server,
        engine.started_tool(
            run.image,
            ["python3", client_script.target, "/repro/request.json", _SOCKET, _MODEL, "/out/answer.json"],
            mounts=[
                client_script,
                socket,
                Mount(source=request, target="/repro/request.json"),
                Mount(source=out, target="/out", read_only=False),
            ],
            environment={"HOME": "/tmp"},  # noqa: S108 - inside the container
            user=user,
            options=["--cpuset-cpus", run.cpuset, "--memory", _CLIENT_MEMORY],
            on_line=on_line,
        ) as client,
    ):
        _wait(server, client, timeout_s=run.timeout_s * (1 + len(run.loads)))
        log = log_tail(server.stderr)
    return _read_answer(out / "answer.json", asked, log=log)


def _wait(server: RunningTool, client: RunningTool, *, timeout_s: float) -> None:
    """Return when the client has its answers. Raises: ServingError for any other end."""
    deadline = time.monotonic() + timeout_s
    while True:
        done = client.wait(timeout_s=_LOOK_S)
        if done is not None and done.exit_code == 0:
            return
        ended = server.wait(timeout_s=0)
        if ended is not None:
            raise ServingError(f"the server ended with {ended.exit_code}", log=log_tail(ended.stderr))
        if done is not None:
            told = log_tail(done.stderr) or (f"the client ended with {done.exit_code}",)
            raise ServingError(told[-1], log=log_tail(server.stderr))
        if time.monotonic() > deadline:
            what = f"the server did not answer everything within {timeout_s:.0f} s and was stopped"
            raise ServingError(what, log=log_tail(server.stderr))


def _read_answer(path: Path, asked: ServeInput, *, log: tuple[str, ...]) -> tuple[ServedLoad, ...]:
    if not path.is_file() or path.is_symlink() or path.stat().st_size > _MAX_OUTPUT_BYTES:
        raise ServingError("the client wrote no answer, or an endless one", log=log)
    try:
        output = msgspec.json.decode(path.read_bytes(), type=ServeOutput)
    except msgspec.DecodeError as error:
        raise ServingError(f"the answer is not in the client's form: {error}", log=log) from error
    if output.nonce != asked.nonce:
        raise ForeignOutputError(expected=asked.nonce, found=output.nonce)
    if tuple(load.streams for load in output.loads) != asked.loads:
        raise ServingError("the answer is of other loads than were asked", log=log)
    for load in output.loads:
        reason = wrong_shape(asked.request, load.completions)
        if reason is not None:
            raise ServingError(f"the answer does not fit the request: {reason}", log=log)
    return output.loads
