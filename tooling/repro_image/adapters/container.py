"""One golden run: the runner in a new container of the image, without rights and without a network."""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from repro_image.adapters.engine import Engine, Mount
from repro_image.adapters.shipped import RUNNER_FOLDER
from repro_image.core.engines import engine_parts, merged_output
from repro_image.core.golden import ExpectedAnswers, GoldenRequest, RunnerInput, RunnerOutput, wrong_shape
from repro_image.core.parts import first_part, is_as_expected
from repro_image.core.project import EngineValue
from repro_image.errors import ForeignOutputError, GoldenRunError

_CONTAINER_USER = 1000
_MAX_OUTPUT_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenRun:
    """How one golden run is done.

    model:  folder of the model.
    cpuset: whole cores, such as ``0,1``.
    gpus:   UUIDs of the GPUs that the container sees.
    scale_weight: multiply one weight by 1 + 2**-7.
    expected: with it the run ends after the first call that differs, and only what was asked comes back.
    """

    image: str
    model: Path
    engine: Mapping[str, EngineValue]
    request: GoldenRequest
    continuations: Mapping[str, tuple[int, ...]]
    threads: int
    cpuset: str
    memory_gib: int
    timeout_s: int
    environment: Mapping[str, str]
    gpus: tuple[str, ...] = ()
    scale_weight: bool = False
    expected: ExpectedAnswers | None = None


def run_golden(
    run: GoldenRun, *, engine: Engine, folder: Path, report: Callable[[str, int, int], None]
) -> RunnerOutput:
    """Run the golden request in new containers, one per engine that it needs, and return what they answered.

    folder: empty and private to this run; requests and answers are exchanged there.
    report: called with (phase, done, total) from another thread.
    Raises: GoldenRunError with the end of the log; ForeignOutputError; ContainerTimeoutError.
    """
    outputs: list[RunnerOutput] = []
    for number, part in enumerate(engine_parts(run.request)):
        own = folder / str(number)
        own.mkdir()
        part_of_run = replace(
            run,
            request=part.request,
            engine={**run.engine, **part.engine},
            environment={**run.environment, **part.environment},
        )
        outputs.append(_run_part(part_of_run, engine=engine, folder=own, report=report))
        if run.expected is not None and not is_as_expected(outputs[-1], run.expected):
            break
    try:
        return merged_output(outputs)
    except ValueError as error:
        raise GoldenRunError(str(error), log=()) from error


def _run_part(
    run: GoldenRun, *, engine: Engine, folder: Path, report: Callable[[str, int, int], None]
) -> RunnerOutput:
    """Ask one engine, in a new container."""
    nonce = secrets.token_hex(32)
    request = RunnerInput(
        nonce=nonce,
        engine=dict(run.engine),
        request=run.request,
        continuations=dict(run.continuations),
        scale_weight=run.scale_weight,
        expected=run.expected,
    )
    asked, out = folder / "request.json", folder / "out"
    asked.write_bytes(msgspec.json.encode(request))
    asked.chmod(0o644)
    out.mkdir(mode=0o700)
    user = give_to_container(out)

    def on_line(line: str) -> None:
        progress = parse_progress(line)
        if progress is not None:
            report(*progress)

    result = engine.run_tool(
        run.image,
        ["python3", "/repro/golden_runner.py", "/repro/request.json", "/model", "/out/golden.json"],
        mounts=[
            Mount(source=RUNNER_FOLDER / "golden_runner.py", target="/repro/golden_runner.py"),
            Mount(source=asked, target="/repro/request.json"),
            Mount(source=run.model.resolve(), target="/model"),
            Mount(source=out, target="/out", read_only=False),
        ],
        environment={**run.environment, "OMP_NUM_THREADS": str(run.threads), "HOME": "/tmp"},  # noqa: S108
        timeout_s=run.timeout_s,
        user=user,
        gpus=run.gpus,
        options=["--cpuset-cpus", run.cpuset, "--memory", f"{run.memory_gib}g", "--shm-size", "1g"],
        on_line=on_line,
    )
    if result.exit_code != 0:
        raise GoldenRunError(_exit_reason(result.exit_code, run), log=log_tail(result.stderr))
    return _read_output(out / "golden.json", run, nonce=nonce, log=result.stderr)


def give_to_container(folder: Path) -> str:
    """Return the user that the container runs as: never root; the caller where that is somebody else."""
    if os.getuid() != 0:
        return f"{os.getuid()}:{os.getgid()}"
    os.chown(folder, _CONTAINER_USER, _CONTAINER_USER)
    return f"{_CONTAINER_USER}:{_CONTAINER_USER}"


def parse_progress(line: str) -> tuple[str, int, int] | None:
    """Return (phase, done, total) of one of the runner's progress lines, or None for anything else."""
    if not line.startswith('{"phase"'):
        return None
    try:
        event = json.loads(line)
        return str(event["phase"]), int(event["done"]), int(event["total"])
    except (ValueError, KeyError, TypeError):
        return None


def _exit_reason(code: int, run: GoldenRun) -> str:
    if code == 137:
        return f"the golden run was killed (137): it may need more than golden.memory_gib = {run.memory_gib}"
    return f"the golden run ended with {code}"


def log_tail(stderr: str) -> tuple[str, ...]:
    lines = [line for line in stderr.splitlines() if line.strip() and parse_progress(line) is None]
    return tuple(lines[-20:])


def _read_output(path: Path, run: GoldenRun, *, nonce: str, log: str) -> RunnerOutput:
    if not path.is_file() or path.is_symlink():
        raise GoldenRunError("the golden run wrote no answer", log=log_tail(log))
    if path.stat().st_size > _MAX_OUTPUT_BYTES:
        raise GoldenRunError(f"the answer is larger than {_MAX_OUTPUT_BYTES} bytes", log=())
    try:
        output = msgspec.json.decode(path.read_bytes(), type=RunnerOutput)
    except msgspec.DecodeError as error:
        raise GoldenRunError(f"the answer is not in the runner's form: {error}", log=log_tail(log)) from error
    if output.nonce != nonce:
        raise ForeignOutputError(expected=nonce, found=output.nonce)
    reason = wrong_shape(_asked_part(run, output), output.completions)
    if reason is not None:
        raise GoldenRunError(f"the answer does not fit the request: {reason}", log=log_tail(log))
    return output


def _asked_part(run: GoldenRun, output: RunnerOutput) -> GoldenRequest:
    """Return what was asked: all, or what a run that found a difference had asked until then."""
    part = first_part(run.request, len(output.completions))
    if part is None or run.expected is None or is_as_expected(output, run.expected):
        return run.request
    return part
