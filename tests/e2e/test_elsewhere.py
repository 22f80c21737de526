"""Another machine's processor, and a project that starts from nothing."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Recorded
from tests.scratch import COMMAND, IMAGE, Scratch, docker

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(1200)]


@pytest.fixture
def other_processor(tmp_path: Path) -> tuple[str, ...]:
    """A command prefix under which the client reads another processor model from /proc/cpuinfo."""
    text = re.sub(
        r"^model\t\t: \d+$", "model\t\t: 999", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE
    )
    assert "\t: 999\n" in text
    fake = tmp_path / "cpuinfo"
    fake.write_text(text)
    return ("unshare", "--mount", "sh", "-c", f'mount --bind {fake} /proc/cpuinfo && exec "$@"', "sh")


def test_another_class_is_not_comparable_until_it_is_recorded(
    epoch: Recorded, other_processor: tuple[str, ...], tmp_path: Path
) -> None:
    fleet = Scratch(tmp_path / "fleet", epoch.scratch.store)
    subprocess.run(["cp", "-a", f"{epoch.scratch.folder}/.", str(fleet.folder)], check=True)
    before = fleet.recorded()

    refused = fleet.run("verify", epoch.tag, prefix=other_processor, environment={"TMPDIR": "/tmp"})
    assert refused.code == 11, refused.out + refused.err
    assert "model" in refused.out
    assert "999" in refused.out
    assert fleet.recorded() == before

    added = fleet.run("verify", epoch.tag, "--record", prefix=other_processor)
    assert added.code == 0, added.out + added.err
    now = fleet.recorded()
    assert {path: now[path] for path in before} == before, "what was recorded before only grows"
    assert len([path for path in now if "class-" in path]) == 1
    assert fleet.run("epochs", "check").code == 0

    again = fleet.run("verify", epoch.tag, "--repeat", "2", prefix=other_processor)
    assert again.code == 0, again.out + again.err
    assert again.out.startswith("match")
    assert fleet.run("verify", epoch.tag).code == 0, "the first class still has its own golden"


def test_a_project_from_init_locks_with_both_resolvers_and_builds_as_it_is(
    epoch: Recorded, tmp_path: Path
) -> None:
    folder = tmp_path / "new project"
    subprocess.run([str(COMMAND), "init", str(folder)], check=True, capture_output=True)
    new = Scratch.__new__(Scratch)
    new.folder, new.store = folder, epoch.scratch.store

    locked = new.run("lock", IMAGE)
    assert locked.code == 0, locked.err
    assert locked.seconds < 240, "locking from nothing has a budget of four minutes"
    assert new.run("lock", IMAGE, "--check", prefix=("unshare", "--net")).code == 0
    first = new.recorded()
    unchanged = new.run("lock", IMAGE)
    assert unchanged.code == 0
    assert unchanged.seconds < 5
    assert new.recorded() == first

    by_uv = new.run("lock", IMAGE, "--resolver", "uv")
    assert by_uv.code == 0, by_uv.err
    assert b"# resolver: uv " in new.recorded()[f"locks/{IMAGE}/requirements.txt"]

    built = new.run("build", IMAGE, "--no-golden", "--json")
    assert built.code == 0, built.err
    docker("image", "rm", "--force", built.json[0]["reference"])
