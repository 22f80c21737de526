import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from repro_image.adapters.files import Project
from repro_image.cli import group
from repro_image.core.project import parse_settings
from repro_image.errors import ExistingFilesError, FolderError
from repro_image.steps import init as init_step
from repro_image.steps.init import SHIPPED_IMAGES, lay_out_project
from tests.unit.made_locks import ROOT

FILES = (
    ".gitignore",
    "images/_macros/debian.j2",
    "images/_macros/nvidia.j2",
    "images/_macros/python.j2",
    "images/vllm-cpu/Dockerfile.j2",
    "images/vllm-cpu/image.toml",
    "pyproject.toml",
    "requirements/vllm-cpu.in",
)


def test_a_new_project_holds_the_image_that_this_repository_ships(tmp_path: Path) -> None:
    target = tmp_path / "new/project"
    assert lay_out_project(target) == FILES
    for name in FILES:
        if name.startswith(("images/", "requirements/")):
            assert (target / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.parametrize("image", SHIPPED_IMAGES)
def test_each_shipped_image_can_be_what_a_new_project_starts_with(image: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(group, ["init", str(tmp_path), "--image", image])
    assert result.exit_code == 0, result.output
    project = Project(tmp_path)
    assert project.images() == (image,)
    assert project.image(image).platform == "linux/amd64"
    assert project.requirements(image)


def test_a_new_project_is_a_valid_one_with_the_indexes_that_its_image_names(tmp_path: Path) -> None:
    lay_out_project(tmp_path)
    project = Project(tmp_path)
    assert project.images() == ("vllm-cpu",)
    sources = project.image("vllm-cpu").python.sources
    assert set(sources.values()) <= project.settings.indexes.keys()
    assert project.requirements("vllm-cpu")
    own = parse_settings((ROOT / "pyproject.toml").read_text(), path="pyproject.toml")
    assert project.settings == own


def test_an_existing_file_is_listed_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("mine")
    (tmp_path / ".gitignore").symlink_to("nowhere")
    with pytest.raises(ExistingFilesError) as caught:
        lay_out_project(tmp_path)
    assert str(caught.value) == (
        "these files are already there, and init overwrites nothing: .gitignore, pyproject.toml\n"
        f"  where: {tmp_path}\n"
        "  fix:   name an empty or new folder: `repro-image init DIR`"
    )
    assert caught.value.exit_code == 3
    assert (tmp_path / "pyproject.toml").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gitignore", "pyproject.toml"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError) as caught:
        lay_out_project(tmp_path / "file/project")
    assert caught.value.exit_code == 5


def test_an_installed_package_brings_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert init_step.shipped_project() == ROOT
    monkeypatch.setattr(init_step, "DATA_FOLDER", tmp_path)
    (tmp_path / "project").mkdir()
    assert init_step.shipped_project() == tmp_path / "project"


def test_the_command_lists_what_it_wrote_and_says_what_comes_next(tmp_path: Path) -> None:
    result = CliRunner().invoke(group, ["init", str(tmp_path)])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [str(tmp_path / name) for name in FILES]
    assert "repro-image lock" in result.stderr


def test_the_command_prints_one_json_document(tmp_path: Path) -> None:
    result = CliRunner().invoke(group, ["init", "--json", str(tmp_path)])
    assert json.loads(result.stdout) == {"folder": str(tmp_path), "files": list(FILES)}
