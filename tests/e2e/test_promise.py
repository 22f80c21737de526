"""The promise, on the real engine with real vLLM: build, verify, match, again under each change of place."""

import json
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

import pytest

from repro_image.adapters.files import Project
from repro_image.adapters.store import Store
from tests.e2e.conftest import Recorded
from tests.scratch import IMAGE, Scratch, docker, linked_copy
from tests.somebody import Somebody

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(1200)]


def test_a_recorded_epoch_verifies_as_a_match_and_writes_its_reports(epoch: Recorded, tmp_path: Path) -> None:
    json_file, xml_file = tmp_path / "report.json", tmp_path / "report.xml"
    found = epoch.scratch.run(
        "verify", epoch.reference, "--report", str(json_file), "--report", str(xml_file)
    )
    assert found.code == 0, found.out + found.err
    assert found.out.startswith("match")
    assert epoch.config in found.out
    assert '"match"' in json_file.read_text()
    assert ElementTree.parse(xml_file).getroot().get("failures") == "0"  # noqa: S314 - our own file


def test_it_matches_again_in_a_new_process_with_the_network_cut(epoch: Recorded) -> None:
    found = epoch.scratch.run("verify", epoch.tag, prefix=("unshare", "--net"))
    assert found.code == 0, found.out + found.err
    assert found.out.startswith("match")


def test_the_image_is_found_by_its_digest_too(epoch: Recorded) -> None:
    found = epoch.scratch.run("verify", epoch.config, "--set", "threads=1", "--json")
    assert found.code == 11, found.err
    assert found.json["comparison"]["reason"] == "class"


def test_a_build_with_nothing_changed_takes_under_a_second_and_neither_builds_nor_writes(
    epoch: Recorded, tmp_path: Path
) -> None:
    before = epoch.scratch.recorded()
    (tmp_path / "docker").write_text('#!/bin/sh\ntouch "$0.called"\nexit 1\n')
    (tmp_path / "docker").chmod(0o755)
    place = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    runs = [
        epoch.scratch.run("build", IMAGE, prefix=("unshare", "--net"), environment=place) for _ in range(3)
    ]
    assert {run.code for run in runs} == {0}
    assert not (tmp_path / "docker.called").exists()
    assert "nothing changed since epoch 1" in runs[0].out
    assert min(run.seconds for run in runs) < 1.0
    assert epoch.scratch.recorded() == before


def test_an_epoch_records_what_another_order_of_work_and_rounding_change(epoch: Recorded) -> None:
    shown = epoch.scratch.run("epochs", "show", epoch.tag, "--json")
    floor = shown.json["epoch"]["first_class"]["noise_floor"]
    assert floor["tokens"] > 0
    assert floor["rounding"]["tokens"] == 64
    assert 0.001 < floor["rounding"]["median_nats"] < 0.1


def test_a_removed_image_is_an_error_with_the_fix_until_it_is_rebuilt_bit_for_bit(epoch: Recorded) -> None:
    docker("image", "rm", "--force", epoch.reference)
    missing = epoch.scratch.run("verify", epoch.tag)
    assert missing.code == 5
    assert "--rebuild" in missing.err
    rebuilt = epoch.scratch.run("verify", epoch.tag, "--rebuild", prefix=("unshare", "--net"))
    assert rebuilt.code == 0, rebuilt.out + rebuilt.err
    assert "the same image, bit for bit" in rebuilt.err
    assert rebuilt.out.startswith("match")


def test_build_brings_a_missing_image_back_without_a_new_epoch(epoch: Recorded) -> None:
    docker("image", "rm", "--force", epoch.reference)
    before = epoch.scratch.recorded()
    again = epoch.scratch.run("build", IMAGE, "--json")
    assert again.code == 0, again.err
    assert again.json[0]["did"] == "rebuilt"
    assert again.json[0]["config"] == epoch.config
    assert epoch.scratch.recorded() == before


def test_a_build_by_somebody_elsewhere_gives_the_same_image(
    epoch: Recorded, elsewhere: Mapping[str, str], somebody: Somebody
) -> None:
    """A user who is not root, a folder with a space in its name, another umask, time zone, locale and commit.

    What was downloaded is all there is: they make the root and every layer anew.
    """
    scratch = Scratch(somebody.folder / "another place", somebody.folder / "store")
    git = ["git", "-C", str(scratch.folder), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "another commit"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    scratch.store.mkdir()
    linked_copy(epoch.scratch.store / "sha256", scratch.store / "sha256")
    root = Store(scratch.store).path(Project(scratch.folder).locks(IMAGE).base.root)
    root.unlink()
    somebody.takes(somebody.folder)
    found = scratch.run(
        "build",
        IMAGE,
        "--no-golden",
        "--json",
        prefix=somebody.prefix(groups=(Path("/run/docker.sock").stat().st_gid,)),
        umask=0o077,
        environment={**elsewhere, **somebody.environment},
    )
    assert found.code == 0, found.err
    docker("image", "rm", "--force", found.json[0]["reference"])
    assert found.json[0]["config"] == epoch.config
    made = (root, *(scratch.store / "layers").iterdir())
    assert {path.stat().st_uid for path in made} == {Somebody.ID}


def test_a_rebuild_without_cache_joins_the_epoch_as_a_proof(epoch: Recorded) -> None:
    found = epoch.scratch.run("build", IMAGE, "--prove", "--json")
    assert found.code == 0, found.err
    assert found.json[0]["did"] == "unchanged"
    assert found.json[0]["proof"]["config"] == epoch.config
    shown = epoch.scratch.run("epochs", "show", "1", "--image", IMAGE)
    assert f"as {epoch.config}" in shown.out
    assert epoch.scratch.run("epochs", "check").code == 0


def test_the_next_build_makes_epoch_2_and_says_how_its_answers_compare(
    epoch: Recorded, tmp_path: Path
) -> None:
    later = Scratch(tmp_path / "later", epoch.scratch.store)
    subprocess.run(["cp", "-a", f"{epoch.scratch.folder}/.", str(later.folder)], check=True)
    later.change_image("needs no GPU and no model hub", "reworded, so that the image has another label")
    found = later.run("build", IMAGE)
    assert found.code == 0, found.err
    assert "recorded epoch 2" in found.out
    assert "against epoch 1: the same answers" in found.out
    checked = later.run("epochs", "check")
    assert checked.code == 0
    assert "2 epochs, chain ok" in checked.out
    shown = later.run("epochs", "diff", "1", "2")
    assert shown.code == 0, shown.err


@pytest.mark.parametrize("command", [["doctor"], ["check", IMAGE], ["fingerprint"]])
def test_the_reading_commands_work_on_this_machine(epoch: Recorded, command: list[str]) -> None:
    found = epoch.scratch.run(*command, "--json")
    assert found.code == 0, found.out + found.err
    assert found.json


def test_the_image_itself_says_what_machine_it_demands(epoch: Recorded) -> None:
    good = epoch.scratch.run("check", epoch.reference, "--strict")
    assert good.code == 0, good.out + good.err
    assert {"platform", "constraints.cpu_flags", "golden.threads"} <= set(good.out.split())
    old = {**json.loads(epoch.scratch.run("fingerprint", "--json").out), "flags": ["sse2"]}
    (epoch.scratch.folder / "old.json").write_text(json.dumps(old))
    bad = epoch.scratch.run("check", epoch.reference, "--host", str(epoch.scratch.folder / "old.json"))
    assert bad.code == 4
    assert "lacks avx2, fma" in bad.out


def test_no_rights_are_left_in_the_image(epoch: Recorded) -> None:
    assert docker("run", "--rm", "--network", "none", epoch.reference, "id", "-u") == "1000"
    config = docker("image", "inspect", "--format", "{{json .Config.Env}}", epoch.reference)
    assert os.environ.get("HOSTNAME", "no such host") not in config
    compilers = docker(
        "run", "--rm", "--network", "none", epoch.reference, "sh", "-c", "command -v gcc cc || true"
    )
    assert compilers == ""
