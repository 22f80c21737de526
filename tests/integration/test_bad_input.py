"""Bad input through the whole command line: each with its exit code and a message to act on."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from repro_image.adapters.store import Store
from repro_image.core.lockfile import parse_requirements, print_requirements
from tests.scratch import IMAGE, Run, Scratch


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "project", tmp_path / "store")


def assert_told(found: Run, code: int, *parts: str) -> None:
    """The exit code, what, where and how to fix; never a traceback."""
    assert found.code == code, found.out + found.err
    assert "Traceback" not in found.err
    for part in (*parts, "where:", "fix:"):
        assert part in found.err, found.err


@pytest.mark.parametrize("command", ["lock", "check", "render", "fetch", "build"])
def test_an_unknown_image_is_named_with_the_known_ones(scratch: Scratch, command: str) -> None:
    assert_told(scratch.run(command, "nope"), 2, "'nope'", IMAGE)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("format = 1\nformat = 2\n", "image.toml"),
        ("format = 1\n", "missing required field"),
        ("not toml", "image.toml"),
    ],
)
def test_an_empty_or_malformed_image_toml_is_refused(scratch: Scratch, text: str, part: str) -> None:
    scratch.image_toml.write_text(text)
    assert_told(scratch.run("build", IMAGE), 3, part, f"images/{IMAGE}/image.toml")


def test_an_unquoted_version_is_named_by_its_key_path(scratch: Scratch) -> None:
    scratch.change_image('version = "3.11"', "version = 3.11")
    assert_told(scratch.run("render", IMAGE), 3, "$.python.version", "quotes")


def edit_requirements(scratch: Scratch, old: str, new: str) -> None:
    path = scratch.locks / "requirements.txt"
    text = path.read_text()
    assert re.search(old, text, re.MULTILINE)
    path.write_text(re.sub(old, new, text, count=1, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (r"^numpy==[0-9.]+", "numpy==1.0.0", "changed by hand"),
        (r"^numpy==", "--index-url https://example.org/simple\nnumpy==", "only hashed pins"),
        (r"^numpy==", "-e .\nnumpy==", "only hashed pins"),
        (r"^(numpy==[0-9.]+) --hash=\S+", r"\1", "--hash=sha256"),
    ],
)
def test_a_lock_edited_by_hand_is_refused_with_the_line(
    scratch: Scratch, old: str, new: str, part: str
) -> None:
    edit_requirements(scratch, old, new)
    for command in (["lock", "--check", IMAGE], ["build", IMAGE], ["fetch", IMAGE]):
        assert_told(scratch.run(*command), 3, part, "requirements.txt")


def test_a_stale_lock_is_refused_with_the_command_that_renews_it(scratch: Scratch) -> None:
    wishes = scratch.folder / "requirements" / f"{IMAGE}.in"
    wishes.write_text(wishes.read_text() + "six\n")
    assert_told(scratch.run("lock", "--check", IMAGE), 3, "stale", f"repro-image lock {IMAGE}")
    assert_told(scratch.run("build", IMAGE), 3, "stale", f"repro-image lock {IMAGE}")


def test_a_wheel_that_is_not_the_locked_one_is_refused_and_not_kept(scratch: Scratch) -> None:
    path = scratch.locks / "requirements.txt"
    lock = parse_requirements(path.read_text(), path="requirements.txt", image=IMAGE)
    wrong = "sha256:" + "0" * 64
    small = min(lock.wheels, key=lambda wheel: wheel.size_bytes)
    wheels = tuple(
        msgspec.structs.replace(wheel, sha256=wrong) if wheel.name == small.name else wheel
        for wheel in lock.wheels
    )
    path.write_text(print_requirements(msgspec.structs.replace(lock, wheels=wheels)))
    found = scratch.run("fetch", IMAGE)
    assert_told(found, 5, small.name, wrong)
    assert not Store(scratch.store).path(wrong).exists()


@pytest.mark.parametrize(
    "tag", ["v1\n", "../x", "v1 x", "e0001-ABCDEF01@sha256:12", "\uff450001", "a" * 129 + ":x y"]
)
def test_a_tag_that_is_none_is_refused(scratch: Scratch, tag: str) -> None:
    assert_told(scratch.run("verify", tag), 2, "is not an image reference")


def test_a_tag_that_looks_like_an_option_is_refused(scratch: Scratch) -> None:
    assert scratch.run("verify", "-rf").code == 2
    assert_told(scratch.run("verify", "--", "-rf"), 2, "is not an image reference")


def test_a_tag_without_an_epoch_is_named(scratch: Scratch) -> None:
    assert_told(scratch.run("verify", "e0001-00000000"), 3, "e0001-00000000", "epochs list")


@pytest.mark.parametrize("setting", ["dtype", "=x", "a b=c", "threads=0", "sampling.seed=x", "dtype=$(id)"])
def test_a_what_if_that_is_none_is_refused(scratch: Scratch, setting: str) -> None:
    assert_told(scratch.run("verify", "e0001-00000000", "--set", setting), 2, "--set")


def test_without_an_engine_build_and_verify_say_so(scratch: Scratch) -> None:
    nowhere = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    assert_told(scratch.run("build", IMAGE, environment=nowhere), 5, "no Docker Engine answers", "doctor")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_with_what_is_needed(scratch: Scratch, small_disk: Path) -> None:
    before = scratch.recorded()
    found = scratch.run("fetch", IMAGE, store=small_disk)
    assert_told(found, 5, "free")
    assert scratch.recorded() == before


def test_a_full_disk_below_the_locks_leaves_them_as_they_were(scratch: Scratch, small_disk: Path) -> None:
    shutil.copytree(scratch.folder, small_disk / "project")
    full = Scratch.__new__(Scratch)
    full.folder, full.store, full.image = small_disk / "project", scratch.store, IMAGE
    (small_disk / "ballast").write_bytes(b"\0" * (700 * 1024))
    before = full.recorded()
    edited = full.locks / "Dockerfile"
    edited.write_text("# another\n")
    before[f"locks/{IMAGE}/Dockerfile"] = edited.read_bytes()
    subprocess.run(["dd", "if=/dev/zero", f"of={small_disk}/rest", "bs=1k"], check=False, capture_output=True)
    assert_told(full.run("render", IMAGE), 5, "Dockerfile")
    assert full.recorded() == before
