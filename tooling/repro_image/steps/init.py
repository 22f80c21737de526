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


# What repro-image ships; the first is what a new project gets unless it asks for another.
SHIPPED_IMAGES = ("vllm-cpu", "vllm-cuda")


def lay_out_project(target: Path, image: str = SHIPPED_IMAGES[0]) -> tuple[str, ...]:
    """Write a new project below ``target``, which need not exist; return the written files, sorted.

    image: which of SHIPPED_IMAGES it holds. An existing file is never touched.
    Raises: ExistingFilesError when any of the files is there, then none is written; FolderError.
    """
    files = {
        "pyproject.toml": _PYPROJECT,
        ".gitignore": _GITIGNORE,
        **_shipped_files(shipped_project(), image),
    }
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
    """Return the folder with the shipped images: inside the installed package, else this repository."""
    installed = DATA_FOLDER / "project"
    return installed if installed.is_dir() else Path(__file__).parents[3]


def _shipped_files(source: Path, image: str) -> dict[str, str]:
    """Return relative path -> text of one shipped image, the shared macros and the image's requirements."""
    folders = (source / "images" / image, source / "images/_macros")
    paths = [path for folder in folders for path in folder.iterdir() if not path.name.startswith(".")]
    paths.append(source / "requirements" / f"{image}.in")
    return {str(path.relative_to(source)): path.read_text(encoding="utf-8") for path in paths}
