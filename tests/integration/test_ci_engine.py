""".ci/engine leaves a suitable engine alone, says what an unsuitable one lacks, and how to get one."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "engine"


def run(*prefix: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script from standard input: another user may not reach this checkout."""
    return subprocess.run(
        [*prefix, "bash", "-s"],
        input=SCRIPT.read_text(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd="/",
        env={**os.environ, **environment},
    )


def engine_pids() -> str:
    return subprocess.run(["pidof", "dockerd"], capture_output=True, text=True, check=False).stdout


@pytest.mark.docker
def test_a_suitable_running_engine_is_left_alone_twice_in_a_row() -> None:
    before = engine_pids()
    for _ in range(2):
        done = run()
        assert done.returncode == 0, done.stderr
        assert "ready: Docker Engine" in done.stderr
        assert "installing" not in done.stderr
    assert engine_pids() == before


def test_an_unsuitable_running_engine_is_told_all_that_it_lacks(tmp_path: Path) -> None:
    fake = tmp_path / "docker"
    answers = 'version) echo 20.10.24;; info) echo "[[Backing Filesystem extfs]]";; *) exit 1;;'
    fake.write_text(f'#!/bin/sh\ncase "$1" in {answers} esac\n')
    fake.chmod(0o755)
    done = run(PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 5
    for part in ("20.10.24, needed is 26", "containerd image store", "buildx plugin", "fix:"):
        assert part in done.stderr


def test_without_root_and_without_an_engine_the_message_says_how_to_get_one() -> None:
    nobody = ("setpriv", "--reuid=65534", "--clear-groups")
    done = run(*nobody, DOCKER_HOST="unix:///nonexistent", HOME="/nonexistent")
    assert done.returncode == 5
    for part in ("needs root", "fix:", "Docker Engine >= 26"):
        assert part in done.stderr
