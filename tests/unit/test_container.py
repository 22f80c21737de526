"""The golden run with an engine that answers as told; tests/integration has the real one."""

import base64
import dataclasses
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from repro_image.adapters import container
from repro_image.adapters.container import GoldenRun, run_golden
from repro_image.adapters.engine import Engine, Mount, ToolResult
from repro_image.core.golden import Golden, RunnerInput, RunnerOutput, expected_ids
from repro_image.core.parts import expected_answers
from repro_image.errors import ForeignOutputError, GoldenRunError, ReproImageError
from tests.unit.made_goldens import INSIDE, make_golden, other_bits
from tests.unit.made_goldens import change as make_changed

GOLDEN = make_golden()


def good_answer(asked: RunnerInput) -> bytes:
    return msgspec.json.encode(
        RunnerOutput(
            nonce=asked.nonce,
            completions=GOLDEN.completions,
            vocabulary=GOLDEN.vocabulary,
            weights=GOLDEN.weights,
            canaries=GOLDEN.canaries,
            inside=INSIDE,
            seconds={"load": 1.0},
        )
    )


class FakeEngine(Engine):
    """Calls ``answer`` with the output file and the request, in place of a container."""

    def __init__(
        self, answer: Callable[[Path, RunnerInput], None], *, exit_code: int = 0, stderr: str = ""
    ) -> None:
        self.answer, self.exit_code, self.stderr = answer, exit_code, stderr
        self.call: dict[str, Any] = {}

    def run_tool(
        self,
        image: str,
        command: Sequence[str],
        *,
        mounts: Sequence[Mount] = (),
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
        **others: Any,
    ) -> ToolResult:
        self.call = {
            "image": image,
            "command": command,
            "mounts": mounts,
            "environment": environment,
            **others,
        }
        places = {mount.target: mount.source for mount in mounts}
        for line in self.stderr.splitlines():
            assert on_line is not None
            on_line(line)
        asked = msgspec.json.decode(places["/repro/request.json"].read_bytes(), type=RunnerInput)
        self.answer(places["/out"] / "golden.json", asked)
        return ToolResult(exit_code=self.exit_code, stdout="", stderr=self.stderr)


def good(file: Path, asked: RunnerInput) -> None:
    file.write_bytes(good_answer(asked))


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Path, RunnerInput], None]:
    def answer(file: Path, asked: RunnerInput) -> None:
        fields = json.loads(good_answer(asked))
        change(fields)
        file.write_text(json.dumps(fields))

    return answer


@pytest.fixture
def run(tmp_path: Path) -> GoldenRun:
    (tmp_path / "model").mkdir()
    return GoldenRun(
        image="sha256:1",
        model=tmp_path / "model",
        engine={"dtype": "bfloat16"},
        request=GOLDEN.request,
        continuations={"greedy/0": (1, 2)},
        threads=2,
        cpuset="0,1",
        memory_gib=12,
        timeout_s=60,
        environment={"A": "1"},
    )


def start(run: GoldenRun, engine: Engine, folder: Path) -> tuple[RunnerOutput, list[tuple[str, int, int]]]:
    told: list[tuple[str, int, int]] = []
    work = folder / "work"
    work.mkdir()
    return run_golden(run, engine=engine, folder=work, report=lambda *event: told.append(event)), told


def failed(run: GoldenRun, engine: Engine, folder: Path) -> ReproImageError:
    with pytest.raises(ReproImageError) as caught:
        start(run, engine, folder)
    return caught.value


def test_an_answer_that_fits_is_returned_and_progress_is_told(run: GoldenRun, tmp_path: Path) -> None:
    stderr = 'loading\n{"phase": "load", "done": 1, "total": 2}\n{"phase": "x"}\n{"phase": [}\n'
    output, told = start(run, FakeEngine(good, stderr=stderr), tmp_path)
    assert output.completions == GOLDEN.completions
    assert told == [("load", 1, 2)]


def test_the_container_gets_no_rights_beyond_its_output_folder(run: GoldenRun, tmp_path: Path) -> None:
    engine = FakeEngine(good)
    start(run, engine, tmp_path)
    call = engine.call
    assert [mount.target for mount in call["mounts"] if not mount.read_only] == ["/out"]
    assert {mount.target for mount in call["mounts"]} == {
        *("/repro/golden_runner.py", "/repro/request.json", "/model", "/out")
    }
    assert not call["user"].startswith("0:")
    assert call.get("network", "none") == "none"
    assert call["environment"] == {"A": "1", "OMP_NUM_THREADS": "2", "HOME": "/tmp"}
    assert call["options"] == ["--cpuset-cpus", "0,1", "--memory", "12g", "--shm-size", "1g"]
    assert call["timeout_s"] == 60


def test_a_strict_umask_hides_no_request_from_the_container(run: GoldenRun, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        start(run, FakeEngine(good), tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "work/0/request.json").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "work/0/out").stat().st_mode) == 0o700


def test_each_run_asks_with_its_own_nonce(run: GoldenRun, tmp_path: Path) -> None:
    nonces = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        nonces.append(start(run, FakeEngine(good), tmp_path / name)[0].nonce)
    assert [len(nonce) for nonce in nonces] == [64, 64]
    assert nonces[0] != nonces[1]


@pytest.mark.parametrize("nonce", ["", "0" * 64, "\x1b[2J"])
def test_the_answer_of_another_run_is_refused_with_exit_code_6(
    run: GoldenRun, tmp_path: Path, nonce: str
) -> None:
    error = failed(run, FakeEngine(changed(lambda fields: fields.update(nonce=nonce))), tmp_path)
    assert isinstance(error, ForeignOutputError)
    assert (error.exit_code, error.found) == (6, nonce)
    assert "\x1b" not in str(error)


def _cut(fields: dict[str, Any]) -> None:
    fields["completions"].pop()


def _cut_ids(fields: dict[str, Any]) -> None:
    data = base64.b64decode(fields["completions"][0]["output_ids"])
    fields["completions"][0]["output_ids"] = base64.b64encode(data[:-4]).decode()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda file, asked: None, "the golden run wrote no answer"),
        (lambda file, asked: file.mkdir(), "the golden run wrote no answer"),
        (lambda file, asked: os.mkfifo(file), "the golden run wrote no answer"),
        (lambda file, asked: file.symlink_to("/etc/passwd"), "the golden run wrote no answer"),
        (lambda file, asked: file.symlink_to("nowhere"), "the golden run wrote no answer"),
        (lambda file, asked: file.write_bytes(b""), "the answer is not in the runner's form"),
        (
            lambda file, asked: file.write_bytes(good_answer(asked)[:-9]),
            "the answer is not in the runner's form",
        ),
        (lambda file, asked: file.write_bytes(b"[" * 100_000), "the answer is not in the runner's form"),
        (lambda file, asked: file.write_bytes(b"\xff"), "the answer is not in the runner's form"),
        (changed(lambda fields: fields.update(more=1)), "the answer is not in the runner's form"),
        (changed(lambda fields: fields.update(nonce=3)), "the answer is not in the runner's form"),
        (changed(_cut), "the answer does not fit the request"),
        (changed(_cut_ids), "the answer does not fit the request"),
    ],
)
def test_an_answer_that_is_missing_or_broken_is_told_with_the_log(
    run: GoldenRun, tmp_path: Path, answer: Callable[[Path, RunnerInput], None], told: str
) -> None:
    error = failed(run, FakeEngine(answer, stderr="a\nlast words\n"), tmp_path)
    assert isinstance(error, GoldenRunError)
    assert error.what.startswith(told)
    assert error.exit_code == 5
    assert error.log == ("a", "last words")


def first_answer(change: Callable[[Golden], Golden]) -> Callable[[Path, RunnerInput], None]:
    def answer(file: Path, asked: RunnerInput) -> None:
        found = change(GOLDEN)
        fields = msgspec.json.decode(good_answer(asked), type=RunnerOutput)
        part = replace(fields, completions=found.completions[:1], weights=found.weights)
        file.write_bytes(msgspec.json.encode(part))

    return answer


@pytest.mark.parametrize(
    "change",
    [
        lambda golden: make_changed(golden, {"greedy/0": other_bits(3)}),
        lambda golden: replace(golden, weights={}),
    ],
)
def test_a_run_may_end_with_its_first_difference_where_that_was_asked(
    run: GoldenRun, tmp_path: Path, change: Callable[[Golden], Golden]
) -> None:
    stopping = dataclasses.replace(run, expected=expected_answers(GOLDEN))
    output, _ = start(stopping, FakeEngine(first_answer(change)), tmp_path)
    assert [completion.id for completion in output.completions] == ["greedy/0"]


def test_a_run_that_ends_early_without_a_difference_or_unasked_is_refused(
    run: GoldenRun, tmp_path: Path
) -> None:
    for name, expected, change in (
        ("same", expected_answers(GOLDEN), lambda golden: golden),
        ("unasked", None, lambda golden: replace(golden, weights={})),
    ):
        (tmp_path / name).mkdir()
        stopping = dataclasses.replace(run, expected=expected)
        error = failed(stopping, FakeEngine(first_answer(change)), tmp_path / name)
        assert "1 completions where 10 were asked" in error.what


def test_a_huge_answer_is_not_read(run: GoldenRun, tmp_path: Path) -> None:
    def huge(file: Path, _asked: RunnerInput) -> None:
        with file.open("wb") as out:
            out.truncate(container._MAX_OUTPUT_BYTES + 1)  # a hole: takes no disk

    assert failed(run, FakeEngine(huge), tmp_path).what.startswith("the answer is larger than ")


def test_a_killed_run_is_told_with_its_memory_limit(run: GoldenRun, tmp_path: Path) -> None:
    error = failed(run, FakeEngine(good, exit_code=137), tmp_path)
    assert error.what.startswith(
        "the golden run was killed (137): it may need more than golden.memory_gib = 12"
    )


def test_a_run_that_ends_with_an_error_is_told_with_its_last_20_lines(run: GoldenRun, tmp_path: Path) -> None:
    lines = [*(f"line {n}" for n in range(30)), '{"phase": "load", "done": 1, "total": 2}', ""]
    error = failed(run, FakeEngine(good, exit_code=1, stderr="\n".join(lines)), tmp_path)
    assert isinstance(error, GoldenRunError)
    assert error.what.startswith("the golden run ended with 1\n")
    assert error.log == tuple(f"line {n}" for n in range(10, 30))


def with_invariant_lane() -> Golden:
    """The golden whose sampled lane is asked of the batch-invariant engine, last."""
    greedy, sampled, again = GOLDEN.request.lanes
    lanes = (greedy, replace(again, replay_of=("greedy",)), replace(sampled, batch_invariant=True))
    request = replace(GOLDEN.request, lanes=lanes)
    by_id = {completion.id: completion for completion in GOLDEN.completions}
    return replace(GOLDEN, request=request, completions=tuple(by_id[name] for name in expected_ids(request)))


def test_batch_invariant_lanes_are_asked_of_an_engine_of_their_own(run: GoldenRun, tmp_path: Path) -> None:
    golden, calls = with_invariant_lane(), []

    def answer(file: Path, asked: RunnerInput) -> None:
        calls.append((asked, dict(engine.call["environment"])))
        by_id = {completion.id: completion for completion in golden.completions}
        fields = msgspec.json.decode(good_answer(asked), type=RunnerOutput)
        part = tuple(by_id[name] for name in expected_ids(asked.request))
        file.write_bytes(msgspec.json.encode(replace(fields, completions=part)))

    engine = FakeEngine(answer)
    output, _ = start(dataclasses.replace(run, request=golden.request), engine, tmp_path)
    assert output.completions == golden.completions
    assert output.seconds == {"load": 1.0, "batch-invariant load": 1.0}
    (first, plain), (second, invariant) = calls
    assert [lane.name for lane in first.request.lanes] == ["greedy", "replay"]
    assert [lane.name for lane in second.request.lanes] == ["sampled"]
    assert "VLLM_BATCH_INVARIANT" not in plain
    assert invariant == {**plain, "VLLM_BATCH_INVARIANT": "1"}
    assert second.engine == {**first.engine, "max_num_seqs": 8}
    assert first.nonce != second.nonce


def test_engines_that_loaded_other_weights_make_no_golden(run: GoldenRun, tmp_path: Path) -> None:
    golden = with_invariant_lane()

    def answer(file: Path, asked: RunnerInput) -> None:
        fields = msgspec.json.decode(good_answer(asked), type=RunnerOutput)
        names = expected_ids(asked.request)
        part = tuple(c for c in golden.completions if c.id in names)
        weights = {"embed": names[0]}
        file.write_bytes(msgspec.json.encode(replace(fields, completions=part, weights=weights)))

    error = failed(dataclasses.replace(run, request=golden.request), FakeEngine(answer), tmp_path)
    assert "the batch-invariant engine loaded other weights" in error.what


def test_a_run_that_may_stop_early_asks_no_second_engine_after_a_difference(
    run: GoldenRun, tmp_path: Path
) -> None:
    golden, asked_lanes = with_invariant_lane(), []

    def answer(file: Path, asked: RunnerInput) -> None:
        asked_lanes.append([lane.name for lane in asked.request.lanes])
        fields = msgspec.json.decode(good_answer(asked), type=RunnerOutput)
        file.write_bytes(
            msgspec.json.encode(
                replace(fields, completions=golden.completions[:6], weights={"embed": "other"})
            )
        )

    expecting = dataclasses.replace(run, request=golden.request, expected=expected_answers(golden))
    output, _ = start(expecting, FakeEngine(answer), tmp_path)
    assert asked_lanes == [["greedy", "replay"]]
    assert output.completions == golden.completions[:6]
