"""The project's folder: reads images/ and requirements/, reads and writes locks/; whole-file writes are
atomic.
"""

import os
import tempfile
from pathlib import Path

import msgspec

from repro_image.core.lockfile import (
    BaseLock,
    DebianLock,
    Locks,
    ModelLock,
    RequirementsLock,
    parse_json_lock,
    parse_model_lock,
    parse_requirements,
)
from repro_image.core.own_suite import OWN_SUITE
from repro_image.core.project import ImageSpec, RegistryBase, Settings, is_name, parse_image, parse_settings
from repro_image.errors import (
    FolderError,
    InvalidFileError,
    MissingLockError,
    NoProjectError,
    UnknownImageError,
)

REQUIREMENTS, MODEL, DOCKERFILE = "requirements.txt", "model.json", "Dockerfile"
DEBIAN, BASE = "debian.json", "base.json"


def find_project(start: Path) -> Path:
    """Return ``start`` or the nearest folder above it that holds ``images/``. Raises: NoProjectError."""
    for folder in (start, *start.parents):
        if (folder / "images").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    raise NoProjectError(str(start))


def write_text(path: Path, text: str) -> bool:
    """Write ``text`` to ``path`` in one step, readable by all; return whether the file changed.

    A device or a pipe, such as /dev/stdout, is written to, and a link stays one.
    Raises: FolderError.
    """
    data = text.encode()
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return True
        path = path.resolve()
        if path.is_file() and path.read_bytes() == data:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data)
    except OSError as error:
        raise FolderError(str(error.filename or path), reason=error.strerror or str(error)) from error
    return True


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Project:
    """One project's files. Paths in errors are relative to its root."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        text = self._read(self.root / "pyproject.toml")
        settings = parse_settings(text, path="pyproject.toml") or Settings()
        if settings.ca is not None:  # apt and pip run elsewhere, and know nothing of ~
            ca = str(self.root / os.path.expanduser(settings.ca))  # noqa: PTH111 - Path's raises without a home
            settings = msgspec.structs.replace(settings, ca=ca)
        self.settings = settings

    def images(self) -> tuple[str, ...]:
        """Return the names of the images, sorted: the folders below images/ that hold an image.toml.

        Raises: InvalidFileError for a name that could not stand in a Dockerfile or a repository.
        """
        names = sorted(path.parent.name for path in (self.root / "images").glob("*/image.toml"))
        for name in names:
            if not is_name(name):
                raise InvalidFileError(
                    f"{name!r} is no name for an image",
                    path="images/",
                    fix="rename the folder: lower case letters and digits, with single hyphens between them",
                )
        return tuple(names)

    def image(self, name: str) -> ImageSpec:
        """Return the image's settings. Raises: UnknownImageError, InvalidFileError."""
        if name not in self.images():
            raise UnknownImageError(name, known=self.images())
        path = self.root / "images" / name / "image.toml"
        return parse_image(self._read(path), path=self.relative(path))

    def suite(self, name: str) -> tuple[str, str]:
        """Return the text of the image's own suite.toml, and its path. Raises: InvalidFileError."""
        path = self.root / "images" / name / OWN_SUITE
        if not path.is_file():
            raise InvalidFileError(
                "the suite is missing that image.toml names",
                path=self.relative(path),
                fix="write the file, or name a suite that repro-image ships in `golden.suite`",
            )
        return self._read(path), self.relative(path)

    def templates(self, name: str) -> dict[str, str]:
        """Return file name -> text of the image's own templates and the shared macros; the image's own
        win.
        """
        folders = (self.root / "images" / "_macros", self.root / "images" / name)
        paths = [path for folder in folders for path in sorted(folder.glob("*.j2"))]
        return {path.name: self._read(path) for path in paths}

    def requirements(self, name: str) -> str:
        """Return the text of requirements/<image>.in."""
        path = self.root / "requirements" / f"{name}.in"
        if not path.is_file():
            raise InvalidFileError(
                "the requirements are missing",
                path=self.relative(path),
                fix="write the file: one requirement a line",
            )
        return self._read(path)

    def lock_folder(self, name: str) -> Path:
        """Return locks/<image>/, which need not exist. Raises: InvalidFileError for a link that leads out."""
        return self._inside(self.root / "locks" / name)

    def locks(self, name: str) -> Locks:
        """Return the image's locks. Raises: MissingLockError, EditedLockError, InvalidFileError."""
        return Locks(
            base=self.base_lock(name),
            requirements=self.requirements_lock(name),
            model=self.model_lock(name),
        )

    def base_file(self, name: str) -> str:
        """Return the name of the base's lock: debian.json or base.json, by the kind of the base."""
        return BASE if isinstance(self.image(name).base, RegistryBase) else DEBIAN

    def base_lock(self, name: str) -> DebianLock | BaseLock:
        file = self.base_file(name)
        text, path = self._lock_text(name, file)
        if file == BASE:
            return parse_json_lock(text, BaseLock, path=path, image=name)
        return parse_json_lock(text, DebianLock, path=path, image=name)

    def requirements_lock(self, name: str) -> RequirementsLock:
        text, path = self._lock_text(name, REQUIREMENTS)
        return parse_requirements(text, path=path, image=name)

    def model_lock(self, name: str) -> ModelLock:
        text, path = self._lock_text(name, MODEL)
        return parse_model_lock(text, path=path, image=name)

    def dockerfile(self, name: str) -> str | None:
        """Return the committed rendered Dockerfile, or None before the first render."""
        path = self.lock_folder(name) / DOCKERFILE
        return self._read(path) if path.is_file() else None

    def write_lock(self, name: str, file: str, text: str) -> bool:
        """Write one file of locks/<image>/ in one step; return whether it changed."""
        return write_text(self.lock_folder(name) / file, text)

    def remove_lock(self, name: str, file: str) -> bool:
        """Remove one file of locks/<image>/; return whether it was there. Raises: FolderError."""
        path = self.lock_folder(name) / file
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise FolderError(str(path), reason=error.strerror or str(error)) from error
        return True

    def relative(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def _lock_text(self, name: str, file: str) -> tuple[str, str]:
        path = self.lock_folder(name) / file
        if not path.is_file():
            raise MissingLockError(self.relative(path), image=name)
        return self._read(path), self.relative(path)

    def _inside(self, path: Path) -> Path:
        if not Path(os.path.realpath(path)).is_relative_to(self.root):  # resolve() raises for a loop
            raise InvalidFileError(
                "the path leaves the project", path=self.relative(path), fix="replace the link by the files"
            )
        return path

    def _read(self, path: Path) -> str:
        try:
            return self._inside(path).read_bytes().decode("utf-8")  # read_text() would hide a CR LF
        except UnicodeDecodeError as error:
            raise InvalidFileError(f"not UTF-8: {error}", path=self.relative(path)) from error
        except OSError as error:
            raise InvalidFileError(f"cannot be read: {error.strerror}", path=self.relative(path)) from error
