"""The steps of .github/actions/repro-image, run as GitHub's runner runs them, on a scratch project."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from repro_image.adapters.goldens import Goldens
from repro_image.adapters.ledger_files import Ledger
from repro_image.core.epoch import Epoch
from tests.composite import ACTION, Runner
from tests.ledger_samples import sample_class, sample_epoch, sample_golden
from tests.registry import running_registry
from tests.scratch import IMAGE, Scratch, docker

pytestmark = pytest.mark.docker

TAG = sample_epoch().tag


@pytest.fixture
def scratch(tmp_path: Path, runner: Runner) -> Scratch:
    return Scratch(tmp_path / "a project", Path(runner.environment["REPRO_IMAGE_STORE"]))


def test_the_tool_is_installed_and_the_doctor_looks_at_the_runner(scratch: Scratch, runner: Runner) -> None:
    ended = runner.run(scratch.folder, command="doctor")
    assert ended.code == 0, ended.log
    assert "Docker Engine" in ended.log
    assert ended.steps == ("Prepare the runner", "Run the command")
    assert ended.summary == "| command | detail |\n|---|---|\n| `doctor` | `done` |\n\n"


@pytest.mark.parametrize("command", ["lock --check", "render --check", "check", "epochs check"])
def test_a_reading_command_passes_on_a_fresh_project(scratch: Scratch, runner: Runner, command: str) -> None:
    ended = runner.run(scratch.folder, command=command, image=IMAGE)
    assert ended.code == 0, ended.log
    assert f"`{command}`" in ended.summary
    assert set(ended.outputs.values()) == {"", str(runner.temp / "repro-image-reports")}


def test_the_exit_code_of_the_tool_is_the_step_s_and_the_summary_says_what_it_means(
    scratch: Scratch, runner: Runner
) -> None:
    requirements = scratch.folder / f"requirements/{IMAGE}.in"
    requirements.write_text(requirements.read_text() + "idna\n")
    ended = runner.run(scratch.folder, command="lock --check", image=IMAGE)
    assert ended.code == 3
    assert "project, lock or model invalid or stale" in ended.summary


def test_a_project_may_lie_deeper_in_the_workspace(scratch: Scratch, runner: Runner) -> None:
    ended = runner.run(
        scratch.folder.parent, command="render --check", image=IMAGE, project=scratch.folder.name
    )
    assert ended.code == 0, ended.log


@pytest.mark.parametrize(
    ("command", "message"),
    [("", "there is no command"), ("build", "about one image"), ("verify", "0 images have epochs")],
)
def test_a_call_that_lacks_something_says_what_to_set(
    scratch: Scratch, runner: Runner, command: str, message: str
) -> None:
    ended = runner.run(scratch.folder, command=command)
    assert ended.code != 0
    assert message in ended.log
    assert "set the input" in ended.log


def test_values_never_become_options_or_commands(scratch: Scratch, runner: Runner, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    for tag in ("--help", f"$(touch '{trap}')", f"x'; touch '{trap}'; '"):
        ended = runner.run(scratch.folder, command="verify", image=IMAGE, tag=tag)
        assert ended.code == 2, ended.log
    unknown = runner.run(scratch.folder, command="render", image="--check")
    assert unknown.code == 2
    assert "'--check'" in unknown.log or '"--check"' in unknown.log
    assert not trap.exists()


def test_a_runner_without_the_gpu_that_is_asked_for_is_refused(scratch: Scratch, runner: Runner) -> None:
    ended = runner.run(scratch.folder, command="epochs check", image=IMAGE, gpu="H100")
    assert ended.code == 5
    assert 'no GPU with "H100" in its name' in ended.log
    assert ended.steps == ("Prepare the runner",)


def fake_programs(folder: Path, switched: Path) -> None:
    """Write a docker that has no containerd store until systemctl restarted it, and a sudo."""
    programs = {
        "docker": 'case "$*" in version*) echo 28.0.4;; '
        f"info*) [ -e '{switched}' ] && echo io.containerd.snapshotter.v1 || echo overlay2;; "
        "buildx*) echo github.com/docker/buildx v0.36.1;; esac",
        "systemctl": f"echo \"$@\" >'{switched}'",
        "sudo": '"$@"',
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize("before", ["", '{"log-driver": "local", "features": {"cdi": true}}'])
def test_the_engine_of_a_machine_that_github_lends_is_switched_to_the_containerd_store(
    scratch: Scratch, runner: Runner, tmp_path: Path, before: str
) -> None:
    settings, switched = tmp_path / "daemon.json", tmp_path / "switched"
    if before:
        settings.write_text(before)
    fake_programs(tmp_path, switched)
    ended = runner.run(
        scratch.folder,
        {
            "RUNNER_ENVIRONMENT": "github-hosted",
            "REPRO_IMAGE_DAEMON_JSON": str(settings),
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        },
        command="doctor",
    )
    assert switched.read_text() == "restart docker\n", ended.log
    assert '"containerd-snapshotter": true' in settings.read_text()
    assert ('"log-driver": "local"' in settings.read_text()) == bool(before)
    assert ('"cdi": true' in settings.read_text()) == bool(before)
    assert "engine: ready" in ended.log


def test_somebody_s_own_runner_is_told_what_it_lacks_and_never_changed(
    scratch: Scratch, runner: Runner, tmp_path: Path
) -> None:
    settings, switched = tmp_path / "daemon.json", tmp_path / "switched"
    fake_programs(tmp_path, switched)
    # An address where no engine answers.
    environment = {"REPRO_IMAGE_DAEMON_JSON": str(settings), "DOCKER_HOST": f"unix://{tmp_path}/none"}
    ended = runner.run(scratch.folder, environment, command="doctor")
    assert ended.code == 5
    assert "this runner lacks" in ended.log
    assert "fix:" in ended.log
    assert not settings.exists()
    assert not switched.exists()


@pytest.fixture
def tiny(scratch: Scratch, runner: Runner, tmp_path: Path) -> Iterator[str]:
    """An image of one file, and epoch 1 that says it is the project's. The reference of the epoch."""
    assert runner.run(scratch.folder, command="render --check", image=IMAGE).code == 0  # installs the tool
    reference = f"repro-image-test/tiny:{TAG}"
    file, tar = tmp_path / "file", tmp_path / "root.tar"
    file.write_text("tiny")
    subprocess.run(["tar", "--create", "--file", tar, "--directory", tmp_path, "file"], check=True)
    docker("import", str(tar), reference)
    try:
        record_epoch(
            scratch, reference, manifest=docker("image", "inspect", "--format", "{{.Id}}", reference)
        )
        yield reference
    finally:
        docker("image", "rm", "--force", reference)


def record_epoch(scratch: Scratch, reference: str, *, manifest: str) -> None:
    repository = reference.partition(":")[0]
    Goldens(scratch.locks / "goldens").write(sample_golden())

    def entry(number: int, previous: str | None) -> Epoch:
        epoch = sample_epoch(number, previous, first_class=sample_class(golden=sample_golden()))
        manifests = (msgspec.structs.replace(epoch.image.manifests[0], digest=manifest),)
        image = msgspec.structs.replace(epoch.image, manifests=manifests)
        return msgspec.structs.replace(epoch, repository=repository, image=image)

    Ledger(scratch.locks, IMAGE).append_epoch(entry)


def registry_step(runner: Runner, scratch: Scratch, verb: str, registry: str) -> tuple[int, str, str]:
    """Return exit code, outputs, and what was printed, of the step that pushes or pulls."""
    output = runner.temp / "output"
    output.write_text("")
    files = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(runner.temp / "summary")}
    inputs = {"IMAGE": IMAGE, "TAG": "", "PROJECT": str(scratch.folder), "REGISTRY": registry}
    done = subprocess.run(
        [str(ACTION / "registry"), verb],
        env={**os.environ, **files, **inputs, "RUNNER_TEMP": str(runner.temp)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, output.read_text(), done.stdout + done.stderr


def test_an_epoch_is_pushed_and_pulled_by_the_digest_of_the_ledger(
    scratch: Scratch, runner: Runner, tiny: str, tmp_path: Path
) -> None:
    digest = docker("image", "inspect", "--format", "{{.Id}}", tiny)
    with running_registry(tmp_path) as registry:
        for _ in range(2):
            code, outputs, told = registry_step(runner, scratch, "push", f"{registry.host}/acme")
            assert code == 0, told
            assert outputs == f"pushed={registry.host}/acme/{IMAGE}@{digest}\n"
        assert registry.digest(f"acme/{IMAGE}:{TAG}") == digest
        docker("image", "rm", "--force", tiny)
        code, _, told = registry_step(runner, scratch, "pull", f"{registry.host}/acme")
        assert code == 0, told
        docker("image", "rm", f"{registry.host}/acme/{IMAGE}@{digest}")
    assert docker("image", "inspect", "--format", "{{.Id}}", tiny) == digest


def test_a_tag_that_is_another_image_in_the_registry_is_never_overwritten(
    scratch: Scratch, runner: Runner, tiny: str, tmp_path: Path
) -> None:
    with running_registry(tmp_path) as registry:
        other = registry.push(tmp_path / "root.tar", f"acme/{IMAGE}:{TAG}", "USER 7")
        code, outputs, told = registry_step(runner, scratch, "push", f"{registry.host}/acme")
        assert code == 5
        assert f"is {other} in the registry" in told
        assert not outputs
        assert registry.digest(f"acme/{IMAGE}:{TAG}") == other


def test_a_registry_without_the_epoch_or_without_an_answer_is_an_error_with_the_fix(
    scratch: Scratch, runner: Runner, tiny: str, tmp_path: Path
) -> None:
    with running_registry(tmp_path) as registry:
        code, _, told = registry_step(runner, scratch, "pull", f"{registry.host}/acme")
        assert code == 5
        assert "verify --rebuild" in told
    code, outputs, told = registry_step(runner, scratch, "push", f"{registry.host}/acme")
    assert code == 5
    assert "cannot be asked for" in told
    assert not outputs
    assert docker("image", "ls", "--quiet", f"{registry.host}/acme/{IMAGE}") == ""


def test_every_script_of_the_action_can_be_run() -> None:
    scripts = [path for path in ACTION.iterdir() if path.suffix == ""]
    assert len(scripts) == 4
    assert all(os.access(path, os.X_OK) for path in scripts)
