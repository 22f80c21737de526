"""The Docker Engine of Debian's next release, beside this machine's: the same locks give the same image.

Its packages are downloaded and unpacked, not installed. `make large` runs this.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from repro_image.adapters.store import Store
from tests import small_project
from tests.debian_packages import unpack
from tests.engines import private_engine
from tests.integration.conftest import Quiet
from tests.scratch import IMAGE, REPOSITORY, Run, Scratch, docker

pytestmark = [pytest.mark.large, pytest.mark.docker, pytest.mark.timeout(1800)]

SUITE = "forky"
PACKAGES = ("docker.io", "docker-cli", "docker-buildx", "containerd")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the unpacked engine."""
    return unpack(PACKAGES, SUITE, folder=tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def client(programs: Path) -> Iterator[dict[str, str]]:
    with private_engine(programs) as client:
        yield client


def build(scratch: Scratch, **environment: str) -> Run:
    run = scratch.run("build", scratch.image, "--no-golden", "--json", environment=environment, umask=0o077)
    assert run.code == 0, run.err
    return run


def test_two_versions_make_one_small_image(
    client: dict[str, str], elsewhere: Mapping[str, str], store: Store, tmp_path: Path
) -> None:
    version = ("docker", "version", "--format", "{{.Server.Version}}")
    told = subprocess.run(version, capture_output=True, text=True, check=True, env={**os.environ, **client})
    assert told.stdout.strip() != docker(*version[1:])
    scratch = small_project.lay_out(tmp_path / "p", store, Quiet())
    there, here = build(scratch, **client, **elsewhere), build(scratch)
    docker("image", "rm", "--force", here.json[0]["reference"])
    assert there.json[0]["config"] == here.json[0]["config"]


def test_it_makes_the_image_of_the_committed_epoch(
    client: dict[str, str], elsewhere: Mapping[str, str], store: Store, tmp_path: Path
) -> None:
    latest = max((REPOSITORY / "locks" / IMAGE / "epochs").glob("[0-9]*"))
    recorded = json.loads((latest / "epoch.json").read_text())["predicate"]["image"]["config"]
    there = build(Scratch(tmp_path / "another place", store.root), **client, **elsewhere)
    assert there.json[0]["config"] == recorded
