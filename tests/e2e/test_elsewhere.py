"""Another machine's processor, and a project that starts from nothing."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.changed_models import ChangedModel, Matrix
from tests.e2e.conftest import Recorded
from tests.scratch import COMMAND, IMAGE, Scratch, docker

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(1200)]


@pytest.fixture
def other_processor(tmp_path: Path) -> tuple[str, ...]:
    """A command prefix under which the client reads another processor model from /proc/cpuinfo."""
    return under(r"^model\t\t: \d+$", "model\t\t: 999", folder=tmp_path)


def under(old: str, new: str, *, folder: Path) -> tuple[str, ...]:
    """Return a command prefix under which a pattern of /proc/cpuinfo reads otherwise."""
    text, count = re.subn(old, new, Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    assert count
    fake = folder / "cpuinfo"
    fake.write_text(text)
    return ("unshare", "--mount", "sh", "-c", f'mount --bind {fake} /proc/cpuinfo && exec "$@"', "sh")


def test_a_processor_that_cannot_run_the_image_is_told_before_anything_runs(
    epoch: Recorded, tmp_path: Path
) -> None:
    old = under(r" avx2\b", "", folder=tmp_path)
    found = epoch.scratch.run("verify", epoch.tag, "--across", prefix=old)
    assert found.code == 11, found.out + found.err
    assert found.out.startswith("not comparable (constraint): this machine cannot run the image")
    assert "lacks avx2" in found.out
    assert "golden run" not in found.err


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

    weak = fleet.run("verify", epoch.tag, "--record", "--must-see", "0.1%", prefix=other_processor)
    assert weak.code == 11, weak.out + weak.err
    assert weak.out.startswith("not comparable (power): ")
    assert fleet.recorded() == before

    added = fleet.run("verify", epoch.tag, "--record", prefix=other_processor)
    assert added.code == 0, added.out + added.err
    now = fleet.recorded()
    assert {path: now[path] for path in before} == before, "what was recorded before only grows"
    assert len([path for path in now if "class-" in path]) == 1
    assert fleet.run("epochs", "check").code == 0
    shown = fleet.run("epochs", "show", "1")
    assert "differ in model: match: every level is equal" in shown.out

    again = fleet.run("verify", epoch.tag, prefix=other_processor)
    assert again.code == 0, again.out + again.err
    assert again.out.startswith("match")
    (own,) = [line for line in again.out.splitlines() if line.split()[:1] == ["class"]]

    def told_class(*, prefix: tuple[str, ...] = ()) -> bool:
        weak = fleet.run("verify", epoch.tag, "--must-see", "0.1%", prefix=prefix)
        assert weak.code == 11, weak.out + weak.err
        return own.split() in [line.split() for line in weak.out.splitlines()]

    assert told_class(prefix=other_processor), "told is the class of this machine"
    assert not told_class(), "the first class still has its own golden"


def test_another_dtype_in_another_class_is_a_mismatch_and_never_drift(epoch: Recorded) -> None:
    other = ("--set", "threads=1", "--set", "dtype=float32")
    found = epoch.scratch.run("verify", epoch.tag, "--across", *other, "--json")
    assert found.code == 10, found.err
    comparison = found.json["comparison"]
    assert comparison["reason"] == "weights"
    assert [item["field"] for item in comparison["class_differences"]] == ["threads", "cpus"]


def test_a_golden_too_small_for_the_asked_power_is_not_run(epoch: Recorded) -> None:
    found = epoch.scratch.run("verify", epoch.tag, "--must-see", "0.1%")
    assert found.code == 11, found.err
    assert found.out.startswith("not comparable (power): ")
    assert "golden run" not in found.err


def test_fail_fast_stops_after_the_first_answer_that_a_changed_weight_gives(
    epoch: Recorded, tmp_path: Path
) -> None:
    def doubled(name: str, values: Matrix) -> Matrix | None:
        return values * 2 if name == "model.layers.10.mlp.down_proj.weight" else None

    ChangedModel(epoch.scratch, tmp_path).change_tensors(doubled)
    found = epoch.scratch.run("verify", epoch.tag, "--fail-fast", "--model", str(tmp_path), "--json")
    assert found.code == 10, found.err
    comparison = found.json["comparison"]
    assert comparison["reason"] == "weights"
    assert comparison["part"]["prompts"] == len(comparison["prompts"]) == 1
    assert "stopped after 1 of " in found.err


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
