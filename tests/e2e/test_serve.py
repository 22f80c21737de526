"""verify --serve: vLLM's server with real answers, and a stub in its place for every way to fail."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from repro_image.adapters import serve_run
from repro_image.adapters.engine import Engine
from repro_image.adapters.serve_run import ServeRun, run_serving
from repro_image.adapters.shipped import RUNNER_FOLDER
from repro_image.cli import group
from repro_image.core.golden import GoldenRequest, Lane, Prompt, Sampling
from repro_image.core.serving import ServedLoad, background
from repro_image.errors import ServingError
from tests.composite import Runner
from tests.e2e.conftest import Recorded
from tests.scratch import IMAGE, containers, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(600)]
_STUB = Path(__file__).parents[1] / "serving_stub/serve_server.py"
_GONE_S = 10.0


def test_a_quiet_server_answers_the_recorded_golden_bit_by_bit_and_a_busy_one_is_measured(
    epoch: Recorded, runner: Runner
) -> None:
    before = epoch.scratch.recorded()
    command = "verify --serve --streams 0,2"  # as a step of a job, which wants every report
    found = runner.run(epoch.scratch.folder, command=command, image=IMAGE, tag=epoch.tag)
    assert found.code == 0, found.log
    reports = Path(found.outputs["reports"])
    assert {path.suffix for path in reports.iterdir()} == {".json", ".xml", ".md"}
    assert "| streams | in flight |" in (reports / "verify.md").read_text()
    document = json.loads((reports / "verify.json").read_text())
    assert found.outputs["verdict"] == document["verdict"]
    assert document["verdict"] in ("match", "measured")
    quiet, busy = document["serving"]["rows"]
    assert all(level["equal"] for level in quiet["levels"]), quiet
    assert quiet["in_flight"] == 0
    assert busy["in_flight"] > 0.5
    assert {level["level"]: level["equal"] for level in busy["levels"]}["H0"]
    assert document["context"]["against"].endswith(": 4 prompts, 64 tokens")
    assert "beside 2 streams" in found.log
    assert containers() == []
    assert epoch.scratch.recorded() == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_ended_serving_run_leaves_no_container(epoch: Recorded, number: signal.Signals, code: int) -> None:
    process = epoch.scratch.start("verify", epoch.tag, "--serve", "--streams", "0")
    assert wait_until(lambda: len(containers()) == 2, seconds=60), "no server and client began"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert wait_until(lambda: not containers(), seconds=_GONE_S), containers()


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server in the image that needs no model; client, containers and judgement are the real ones."""
    folder = tmp_path / "runner"
    folder.mkdir()
    shutil.copy(RUNNER_FOLDER / "serve_client.py", folder)
    shutil.copy(_STUB, folder)
    monkeypatch.setattr(serve_run, "RUNNER_FOLDER", folder)
    yield
    assert containers() == []


def ask_stub(epoch: Recorded, folder: Path, mode: str, *, timeout_s: int = 60) -> tuple[ServedLoad, ...]:
    prompts = tuple(
        Prompt(
            id=f"greedy/{n}",
            text="three short words",
            token_ids=(100 + 10 * n, 7),
            sampling=Sampling(max_tokens=4),
        )
        for n in range(3)
    )
    (folder / "model").mkdir()
    (folder / "run").mkdir()
    run = ServeRun(
        image=epoch.reference,
        model=folder / "model",
        engine={"max_num_seqs": 3},
        environment={"STUB": mode},
        request=GoldenRequest(suite="stub", root_seed=42, lanes=(Lane(name="greedy", prompts=prompts),)),
        loads=(0, 2),
        background=tuple(background(42, stream, longest=64) for stream in range(2)),
        cpuset="0",
        memory_gib=2,
        timeout_s=timeout_s,
    )
    return run_serving(run, engine=Engine(), folder=folder / "run", report=lambda *_: None)


@pytest.mark.usefixtures("stub")
def test_other_requests_are_in_flight_while_golden_prompts_are_asked(epoch: Recorded, tmp_path: Path) -> None:
    quiet, busy = ask_stub(epoch, tmp_path, "batched")
    assert (quiet.streams, quiet.requests, quiet.in_flight) == (0, 0, 0.0)
    assert busy.streams == 2
    assert busy.in_flight > 0
    assert [c.tokenized for c in quiet.completions] == [c.tokenized for c in busy.completions]
    assert [c.output_ids for c in quiet.completions] == [c.output_ids for c in busy.completions]
    assert [c.logprobs for c in quiet.completions] != [c.logprobs for c in busy.completions]


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("ends at once", "the server ended with 1\n    | unrecognised arguments: --no-such-flag"),
        ("dies", "the server ended with 3\n    | out of memory, says the stub"),
        ("hangs", "serving failed in phase 0 streams: APITimeoutError"),
        ("never listens", "serving failed in phase server start: TimeoutError"),
    ],
)
def test_a_server_that_fails_is_told_with_the_end_of_its_log(
    epoch: Recorded, tmp_path: Path, mode: str, said: str
) -> None:
    with pytest.raises(ServingError) as caught:
        ask_stub(epoch, tmp_path, mode, timeout_s=4)
    assert said in str(caught.value)
    assert caught.value.exit_code == 5


@pytest.mark.usefixtures("stub")
def test_other_answers_than_the_golden_are_a_mismatch_when_strict(epoch: Recorded) -> None:
    scratch = epoch.scratch
    place = ["--project", str(scratch.folder), "--store", str(scratch.store)]
    found: Result = CliRunner().invoke(
        group, [*place, "verify", epoch.tag, "--serve", "--streams", "0", "--strict"]
    )
    assert found.exit_code == 10, found.output
    assert "mismatch: answers differ beside 0 streams" in found.output
    assert "H3 equal" in found.output


def test_batch_invariance_on_the_cpu_is_refused_before_anything_runs(epoch: Recorded) -> None:
    found = epoch.scratch.run("verify", epoch.tag, "--serve", "--set", "env.VLLM_BATCH_INVARIANT=1")
    assert found.code == 2, found.err
    assert "VLLM_BATCH_INVARIANT" in found.err
    assert "serving" not in found.err
