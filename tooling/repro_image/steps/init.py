"""Lay out a project that `lock` and `build` accept as it is."""

from pathlib import Path

from repro_image.adapters.files import write_text
from repro_image.adapters.shipped import DATA_FOLDER
from repro_image.errors import ExistingFilesError, FolderError

_PYPROJECT = """\
# Settings of repro-image for every image of this project.
[tool.repro-image]
repository = "repro-image"   # images are named <repository>/<image>:<tag>

# Package indexes that image.toml may map packages to; all others come from where this machine's pip looks.
[tool.repro-image.indexes]
pytorch-cpu = "https://download.pytorch.org/whl/cpu"
"""
_GITIGNORE = """\
# What a killed run may leave beside the locks.
/locks/**/.*
"""


def lay_out_project(target: Path) -> tuple[str, ...]:
    """Write a new project below ``target``, which need not exist; return the written files, sorted.

    It holds the image that repro-image itself ships. An existing file is never touched.
    Raises: ExistingFilesError when any of the files is there, then none is written; FolderError.
    """
    files = {"pyproject.toml": _PYPROJECT, ".gitignore": _GITIGNORE, **_shipped_files(shipped_project())}
    existing = sorted(name for name in files if (target / name).exists() or (target / name).is_symlink())
    if existing:
        raise ExistingFilesError(str(target), files=tuple(existing))
    try:
        for name, text in files.items():
            write_text(target / name, text)
    except OSError as error:
        raise FolderError(str(error.filename or target), reason=error.strerror or str(error)) from error
    return tuple(sorted(files))


def shipped_project() -> Path:
    """Return the folder with the shipped image: inside the installed package, else this repository."""
    installed = DATA_FOLDER / "project"
    return installed if installed.is_dir() else Path(__file__).parents[3]


def _shipped_files(source: Path) -> dict[str, str]:
    """Return relative path -> text of the shipped images, their shared macros and their requirements."""
    images = source / "images"
    paths = [path for path in images.rglob("*") if path.is_file() and not path.name.startswith(".")]
    names = sorted(path.parent.name for path in images.glob("*/image.toml"))
    paths += [source / "requirements" / f"{name}.in" for name in names]
    return {str(path.relative_to(source)): path.read_text(encoding="utf-8") for path in paths}
