"""SIGKILL and Ctrl-C at any moment: no epoch, no half file, no container, and the next run succeeds."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from repro_image.adapters.store import Store, hash_file
from tests.e2e.conftest import Recorded
from tests.scratch import IMAGE, Scratch, containers, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(1200)]
_GONE_S = 10.0


@pytest.fixture
def changed(epoch: Recorded, tmp_path: Path) -> Scratch:
    """A project whose next build has a golden to run: another root seed."""
    scratch = Scratch(tmp_path / "changed", epoch.scratch.store)
    subprocess.run(["cp", "-a", f"{epoch.scratch.folder}/.", str(scratch.folder)], check=True)
    scratch.change_image("seed = 42", "seed = 43")
    return scratch


def end_with(process: "subprocess.Popen[str]", number: signal.Signals) -> int:
    process.send_signal(number)
    process.communicate(timeout=30)
    return process.returncode


def test_a_killed_golden_run_leaves_no_container_and_no_epoch_and_the_next_build_succeeds(
    changed: Scratch,
) -> None:
    before = changed.recorded()
    process = changed.start("build", IMAGE)
    assert wait_until(containers, seconds=240), "no golden run began"
    time.sleep(5)  # well inside the import of torch, which holds the interpreter's lock
    end_with(process, signal.SIGKILL)
    assert wait_until(lambda: not containers(), seconds=_GONE_S), containers()
    assert changed.recorded() == before
    again = changed.run("build", IMAGE)
    assert again.code == 0, again.err
    assert "recorded epoch 2" in again.out
    assert changed.run("epochs", "check").code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_golden_run_ends_within_10_s(
    changed: Scratch, number: signal.Signals, code: int
) -> None:
    before = changed.recorded()
    process = changed.start("build", IMAGE)
    assert wait_until(containers, seconds=240), "no golden run began"
    time.sleep(3)
    begin = time.monotonic()
    assert end_with(process, number) == code
    assert time.monotonic() - begin < _GONE_S
    assert wait_until(lambda: not containers(), seconds=_GONE_S)
    assert changed.recorded() == before


def builder_of(pid: int) -> int | None:
    """Return the process that ``pid`` builds with, or None; `docker buildx version` is no build."""
    command = ["pgrep", "-P", str(pid), "-f", "buildx build"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return int(listed[0]) if listed else None


def test_a_killed_build_leaves_no_builder_process_and_no_epoch(changed: Scratch) -> None:
    before = changed.recorded()
    process = changed.start("build", IMAGE, "--no-cache")
    assert wait_until(lambda: builder_of(process.pid), seconds=120), "no build began"
    builder = builder_of(process.pid)
    time.sleep(3)
    end_with(process, signal.SIGKILL)
    assert builder is not None
    assert wait_until(lambda: not Path(f"/proc/{builder}").exists(), seconds=_GONE_S)
    assert containers() == []
    assert changed.recorded() == before


def test_a_killed_fetch_leaves_only_whole_files_and_the_next_one_finishes(
    epoch: Recorded, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    process = epoch.scratch.start("fetch", IMAGE, store=store.root)
    assert wait_until(lambda: len(list((store.root / "sha256").glob("*/*"))) > 20, seconds=60)
    end_with(process, signal.SIGKILL)
    for path in (store.root / "sha256").glob("*/*"):
        assert hash_file(path) == f"sha256:{path.parent.name}{path.name}"
    again = epoch.scratch.run("fetch", IMAGE, store=store.root)
    assert again.code == 0, again.err
    assert list((store.root / "partial").glob("*")) == []
