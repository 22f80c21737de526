import json
from pathlib import Path

import pytest

from repro_image.adapters.buildx import Progress, _failure
from repro_image.errors import BuildFailedError

DATA = Path(__file__).parents[1] / "data/buildx"  # README.md there says how these were recorded


class Told:
    """A Reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.statuses: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def status(self, text: str) -> None:
        self.statuses.append(text)


def feed(data: bytes) -> tuple[Progress, Told]:
    told = Told()
    progress = Progress(told)
    for line in data.splitlines(keepends=True):
        progress.feed(line)
    return progress, told


def recorded(name: str) -> bytes:
    return (DATA / f"{name}.rawjson").read_bytes()


def one_event_a_line(data: bytes) -> bytes:
    """Return the stream as newer buildx prints it."""
    text, out, decoder = data.decode(), [], json.JSONDecoder()
    while text.startswith("{"):
        event, end = decoder.raw_decode(text)
        out.append(json.dumps(event, separators=(",", ":")))
        text = text[end:].lstrip()
    return ("\n".join(out) + "\n" + text).encode()


def failure(progress: Progress) -> BuildFailedError:
    return _failure(progress, 1, dockerfile=Path("locks/x/Dockerfile"))


def test_a_build_is_told_by_its_run_steps_and_its_export() -> None:
    progress, told = feed(recorded("built"))
    assert [line.rpartition(" (")[0] for line in told.lines] == [
        'build: [one 1/2] RUN --network=none set -eu; for n in 1 2 3; do echo "line $n"; done; '
        "printf 'no newline'",
        "build: exporting to image",
    ]
    assert all(line.endswith(" s)") for line in told.lines)
    assert all(status.startswith("build: ") for status in told.statuses)
    assert not any(step.error for step in progress.steps.values())
    assert list(progress.plain) == []
    step = next(step for step in progress.steps.values() if "RUN" in step.name)
    assert (list(step.lines), step.rest) == (["line 1", "line 2", "line 3"], "no newline")


def test_a_failed_step_is_told_with_its_last_20_lines() -> None:
    progress, told = feed(recorded("failed-step"))
    error = failure(progress)
    assert error.step.startswith("[one 1/2] RUN --network=none set -eu; for n in $(seq 30)")
    assert error.reason.endswith("did not complete successfully: exit code: 7")
    assert error.lines == (*(f"line {n}" for n in range(12, 31)), "the \x1b[31mend")
    assert (error.exit_code, error.where) == (5, "locks/x/Dockerfile")
    assert told.lines == []


def test_a_dockerfile_that_does_not_parse_is_told_with_the_clis_own_lines() -> None:
    error = failure(feed(recorded("parse-error"))[0])
    assert error.step == "(before the first step)"
    assert error.lines[-1].startswith("ERROR: failed to solve: dockerfile parse error on line 3")


@pytest.mark.parametrize("name", ["built", "failed-step", "parse-error"])
def test_one_event_a_line_says_the_same_as_indented_events(name: str) -> None:
    (indented, told), (flat, also_told) = feed(recorded(name)), feed(one_event_a_line(recorded(name)))
    assert indented.steps == flat.steps
    assert indented.plain == flat.plain
    assert (told.lines, told.statuses) == (also_told.lines, also_told.statuses)


def test_a_cached_step_is_told_as_such() -> None:
    vertex = {"digest": "sha256:1", "name": "[2/2] RUN true", "cached": True}
    times = {"started": "2026-11-21T00:00:00Z", "completed": "2026-11-21T00:00:00Z"}
    told = feed(json.dumps({"vertexes": [{**vertex, **times}]}).encode())[1]
    assert told.lines == ["build: [2/2] RUN true (cached)"]
    assert told.statuses == []


def test_an_event_split_at_any_line_is_put_together_and_a_step_is_told_once() -> None:
    event = {"vertexes": [{"digest": "d", "name": "RUN x", "started": "2026-11-21T00:00:00Z"}]}
    done = {"vertexes": [{**event["vertexes"][0], "completed": "2026-11-21T00:00:01.5Z"}]}
    told = feed((json.dumps(event, indent=2) + "\n" + (json.dumps(done, indent=1) + "\n") * 2).encode())[1]
    assert (told.statuses, told.lines) == (["build: RUN x"], ["build: RUN x (1.5 s)"])


@pytest.mark.parametrize(
    "line", [b"{no json}\n", b"{\n}}\n", b"ERROR: \xff\n", b"unknown flag: --metadata-file\n"]
)
def test_lines_that_are_no_events_are_kept_for_the_error(line: bytes) -> None:
    progress, _ = feed(line)
    assert "\n".join(failure(progress).lines) == line.decode(errors="replace").rstrip("\n")


def test_a_killed_step_is_told_with_137() -> None:
    reason = 'process "/bin/sh -c x" did not complete successfully: exit code: 137'
    vertex = {"digest": "d", "name": "RUN x", "error": reason}
    canceled = {"digest": "e", "name": "RUN y", "error": "context canceled"}
    progress, _ = feed(json.dumps({"vertexes": [canceled, vertex]}).encode() + b"\n")
    assert (failure(progress).step, failure(progress).reason) == ("RUN x", reason)
