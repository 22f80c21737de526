"""`build --prove` on a real engine, and the same locks on another one: one digest, or the reason why not."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from repro_image.adapters.engine import Engine
from repro_image.adapters.store import Store
from repro_image.core.ledger import StoredEpoch
from tests import small_project
from tests.engines import private_engine
from tests.integration.conftest import Quiet
from tests.scratch import Scratch, docker
from tests.small_project import IMAGE

pytestmark = pytest.mark.docker


@dataclass(frozen=True, slots=True)
class Built:
    """A project with an epoch whose image is here."""

    scratch: Scratch
    epoch: StoredEpoch

    @property
    def reference(self) -> str:
        return f"{self.epoch.epoch.repository}:{self.epoch.epoch.tag}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Scratch:
    return small_project.lay_out(tmp_path_factory.mktemp("project"), store, Quiet())


@pytest.fixture(scope="module")
def built(project: Scratch) -> Iterator[Built]:
    found = build_and_record(project)
    yield found
    docker("image", "rm", "--force", found.reference)


def build_and_record(scratch: Scratch) -> Built:
    engine = Engine()
    run = scratch.run("build", IMAGE, "--no-golden", "--json")
    assert run.code == 0, run.err
    reference = run.json[0]["reference"]
    image = engine.image(reference)
    assert image is not None
    config = run.json[0]["config"]
    stored = small_project.record(scratch, config=config, manifest=image.id, engine_id=engine.versions.id)
    engine.tag(image.id, stored.epoch.repository, stored.epoch.tag)
    engine.untag(reference)
    return Built(scratch, stored)


def test_a_rebuild_by_the_same_engine_is_proved_and_says_so(built: Built) -> None:
    run = built.scratch.run("build", IMAGE, "--prove")
    assert run.code == 0, run.err
    version = Engine().versions.engine
    assert f"proved: built once more without cache by the same engine, {version}, the same image" in run.out
    assert len(list(built.scratch.locks.rglob("proof-*.json"))) == 1


def test_another_engine_with_an_empty_cache_makes_the_same_image(built: Built) -> None:
    """Another folder, umask, time zone and locale, too."""
    with private_engine() as client:
        place = {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "LANG": "tr_TR.UTF-8"}
        run = built.scratch.run(
            "build", IMAGE, "--prove", "--json", environment={**client, **place}, umask=0o077
        )
        assert run.code == 0, run.err
        assert run.json[0]["did"] == "rebuilt"
        proof = run.json[0]["proof"]
        assert proof["config"] == built.epoch.epoch.image.config
        assert proof["is_other_engine"] is True
        assert proof["builder"]["engine_id"] != Engine().versions.id


def test_a_clock_in_the_recipe_is_told_file_by_file_and_nothing_is_recorded(
    project: Scratch, tmp_path: Path
) -> None:
    scratch = Scratch(tmp_path / "planted", project.store, IMAGE)
    subprocess.run(["cp", "-a", f"{project.folder}/.", str(scratch.folder)], check=True)
    subprocess.run(["rm", "-rf", str(scratch.locks / "epochs")], check=True)
    moment = 'mkdir -p "$etc/../var/log"; date +%N >"$etc/built"; date +%N >"$etc/../var/log/build.log"'
    small_project.change_each_time(scratch, moment)
    planted = build_and_record(scratch)
    try:
        run = scratch.run("build", IMAGE, "--prove")
    finally:
        docker("image", "rm", "--force", planted.reference)
    assert run.code == 10, run.err
    assert "not proved: built once more without cache by the same engine" in run.out
    causes = {tuple(line.split()[:3]) for line in run.out.splitlines()}
    assert {("content", "3", "/etc/built"), ("log", "3", "/var/log/build.log")} <= causes
    assert "lock its input by hash or take the chance out of it" in run.out
    assert list(scratch.locks.rglob("proof-*.json")) == []
