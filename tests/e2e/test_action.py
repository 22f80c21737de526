"""The composite action on a real epoch: what later steps of a job get to know, and a way over a registry."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.composite import Runner
from tests.e2e.conftest import Recorded
from tests.registry import running_registry
from tests.scratch import IMAGE, docker

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(1200)]


def test_a_match_is_told_to_later_steps_and_in_the_summary(epoch: Recorded, runner: Runner) -> None:
    ended = runner.run(epoch.scratch.folder, command="verify", image=IMAGE, tag=epoch.tag)
    assert ended.code == 0, ended.log
    told = {"verdict": "match", "tag": epoch.reference, "digest": epoch.config, "epoch": "1"}
    assert {name: ended.outputs[name] for name in told} == told
    assert "| `verify` | `" in ended.summary
    assert "`match`" in ended.summary
    report = ElementTree.parse(Path(ended.outputs["reports"]) / "verify.xml")  # noqa: S314 - our own file
    assert report.getroot().get("failures") == "0"
    assert "<title>match ·" in (Path(ended.outputs["reports"]) / "verify.html").read_text()


def test_a_mismatch_fails_the_step_and_is_told_all_the_same(epoch: Recorded, runner: Runner) -> None:
    ended = runner.run(epoch.scratch.folder, command="verify --set dtype=float32", image=IMAGE)
    assert ended.code == 10, ended.log
    assert ended.outputs["verdict"] == "mismatch"
    assert "`mismatch`" in ended.summary


def test_an_epoch_goes_through_a_registry_and_still_matches(
    epoch: Recorded, runner: Runner, tmp_path: Path
) -> None:
    with running_registry(tmp_path) as registry:
        folder = f"{registry.host}/acme"
        built = runner.run(epoch.scratch.folder, command="build", image=IMAGE, registry=folder, push="true")
        assert built.code == 0, built.log
        assert built.outputs["did"] == "unchanged"
        name, _, digest = built.outputs["pushed"].partition("@")
        assert name == f"{folder}/{IMAGE}"
        records = Path(built.outputs["reports"]) / "records" / "locks" / IMAGE
        assert sorted(path.name for path in records.iterdir()) == ["epochs", "goldens"]

        docker("image", "rm", "--force", epoch.reference)
        asked = runner.run(epoch.scratch.folder, command="verify", image=IMAGE, registry=folder)
        docker("image", "rm", f"{name}@{digest}")
    assert asked.code == 0, asked.log
    assert asked.steps == ("Prepare the runner", "Pull the epoch's image", "Run the command")
    assert asked.outputs["verdict"] == "match"
