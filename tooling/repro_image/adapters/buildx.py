"""docker buildx: one build, its progress as it comes, and what came out."""

import base64
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from repro_image.core.reporter import Reporter
from repro_image.errors import BuildFailedError

_TAIL_LINES = 20
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltImage:
    """What BuildKit says it made. manifest: digest of the manifest; config: digest of the image's
    configuration.
    """

    config: str
    manifest: str
    media_type: str
    size_bytes: int


@dataclass(slots=True)
class Step:
    """One vertex of the build: its name and the last lines that it printed."""

    name: str = ""
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))
    rest: str = ""
    error: str = ""
    is_started: bool = False
    is_done: bool = False


def build_image(
    dockerfile: Path,
    *,
    name: str,
    contexts: Mapping[str, str],
    source_date_epoch: int,
    use_cache: bool = True,
    target: str | None = None,
    reporter: Reporter,
) -> BuiltImage:
    """Build ``dockerfile`` without a network into the engine's store as ``name``, and return its digests.

    contexts: build context name -> folder or ``docker-image://…``; one of a stage's name stands for it.
    target:   the stage to build; None builds the last one.
    Raises: BuildFailedError with the step and its last 20 lines.
    """
    with tempfile.TemporaryDirectory(prefix="repro-image-") as folder:
        metadata, empty = Path(folder) / "metadata.json", Path(folder) / "empty"
        empty.mkdir()
        # Uncompressed: the bytes of a compressed layer would depend on the builder's version, and the local
        # store
        # gains nothing from packing what it unpacks again. Attestations carry times, so they never go in
        # here.
        output = f"type=image,name={name},compression=uncompressed,force-compression=true,oci-mediatypes=true"
        arguments = ["docker", "buildx", "build", "--progress", "rawjson", "--metadata-file", str(metadata)]
        arguments += ["--output", output, "--provenance=false", "--sbom=false", "--network", "none"]
        arguments += ["--build-arg", f"SOURCE_DATE_EPOCH={source_date_epoch}", "--platform", "linux/amd64"]
        # Not the builder in use: one in a container sees no image of the engine and gives it none.
        arguments += ["--builder", "default"]
        arguments += [] if use_cache else ["--no-cache"]
        arguments += ["--target", target] if target else []
        for context, place in sorted(contexts.items()):
            arguments += ["--build-context", f"{context}={place}"]
        arguments += ["--file", str(dockerfile), str(empty)]
        progress, code = _run(arguments, reporter)
        if code != 0:
            raise _failure(progress, code, dockerfile=dockerfile)
        found = json.loads(metadata.read_text())
    descriptor = found["containerimage.descriptor"]
    return BuiltImage(
        config=found["containerimage.config.digest"],
        manifest=found["containerimage.digest"],
        media_type=descriptor["mediaType"],
        size_bytes=descriptor["size"],
    )


def _run(arguments: list[str], reporter: Reporter) -> tuple["Progress", int]:
    progress = Progress(reporter)
    environment = {**os.environ, "DOCKER_CLI_HINTS": "false", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    assert process.stderr is not None  # noqa: S101 - PIPE was asked for above
    try:
        with process.stderr as lines:
            for line in lines:
                progress.feed(line)
        return progress, process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)  # buildx then cancels the build in the engine
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        process.kill()
        process.wait()
        raise


def _die_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it is killed: a build without a client is
    lost.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Progress:
    """BuildKit's rawjson stream, event by event. A line that is no JSON (an early error of the CLI) is kept
    as it is.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.steps: dict[str, Step] = {}
        self.plain: deque[str] = deque(maxlen=_TAIL_LINES)
        self._reporter = reporter
        self._open: list[str] = []

    def feed(self, line: bytes) -> None:
        """Take one line: a whole event, or part of one that buildx 0.13 prints over several lines."""
        text = line.decode(errors="replace").rstrip("\n")
        if not self._open and not text.startswith("{"):
            self.plain.append(text)
            return
        self._open.append(text)
        if text.startswith("}") or (text.endswith("}") and len(self._open) == 1):
            lines, self._open = self._open, []
            try:
                self._take(json.loads("".join(lines)))
            except json.JSONDecodeError:
                self.plain.extend(lines)

    def _take(self, event: Mapping[str, Any]) -> None:
        for vertex in event.get("vertexes") or ():
            self._vertex(vertex)
        for log in event.get("logs") or ():
            self._log(log)

    def _vertex(self, vertex: Mapping[str, Any]) -> None:
        step = self.steps.setdefault(vertex["digest"], Step())
        step.name = vertex.get("name") or step.name
        step.error = vertex.get("error") or step.error
        # Contexts and copies are told by the steps that they belong to; people wait for RUN and the export.
        is_hidden = "RUN " not in step.name and not step.name.startswith("exporting")
        if vertex.get("started") and not step.is_started:
            step.is_started = True
            if not vertex.get("cached"):
                self._reporter.status(f"build: {_short(step.name)}")
        if vertex.get("completed") and not step.is_done:
            step.is_done = True
            if not is_hidden and not step.error:
                self._reporter.line(f"build: {_short(step.name)}{_took(vertex)}")

    def _log(self, log: Mapping[str, Any]) -> None:
        step = self.steps.setdefault(log["vertex"], Step())
        text = step.rest + base64.b64decode(log.get("data") or "").decode(errors="replace")
        *lines, step.rest = text.split("\n")
        step.lines.extend(lines)


def _short(name: str) -> str:
    """Return a step's name on one line: a RUN is told by its first words."""
    text = " ".join(name.split())
    return text if len(text) <= 100 else f"{text[:99]}…"


def _took(vertex: Mapping[str, Any]) -> str:
    if vertex.get("cached"):
        return " (cached)"
    begin, end = (datetime.fromisoformat(vertex[key]) for key in ("started", "completed"))
    return f" ({(end - begin).total_seconds():.1f} s)"


def _failure(progress: Progress, code: int, *, dockerfile: Path) -> BuildFailedError:
    failed = [step for step in progress.steps.values() if step.error and "context canceled" not in step.error]
    if not failed:
        return BuildFailedError(
            "(before the first step)",
            reason=f"docker buildx ended with {code}",
            lines=tuple(progress.plain),
            path=str(dockerfile),
        )
    step = failed[0]
    lines = (*step.lines, step.rest) if step.rest else tuple(step.lines)
    return BuildFailedError(
        step.name, reason=step.error, lines=tuple(lines)[-_TAIL_LINES:], path=str(dockerfile)
    )
