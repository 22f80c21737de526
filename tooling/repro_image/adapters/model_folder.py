"""A model folder that the user names: looked at before anything of it runs, and hashed."""

import json
import shutil
from pathlib import Path

from repro_image.adapters.store import hash_file
from repro_image.core.canonical import canonical_digest
from repro_image.core.lockfile import ModelFile
from repro_image.errors import UnsafeModelError

# Weights as pickle run code when they are loaded; safetensors cannot.
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py")


def model_folder_digest(folder: Path) -> str:
    """Return the digest of the folder's files, made as the model lock's. Raises: UnsafeModelError."""
    config = folder / "config.json"
    if not config.is_file():
        raise UnsafeModelError(str(folder), reason="there is no config.json")
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file():
            raise UnsafeModelError(str(path), reason="it is no regular file")
        if path.suffix.lower() in _PICKLES:
            raise UnsafeModelError(str(path), reason="files of this kind run code when they are loaded")
        files.append(ModelFile(path=name, sha256=hash_file(path), size_bytes=path.stat().st_size))
    for path in sorted(folder.glob("*.json")):
        _refuse_code(path)
    return canonical_digest(tuple(files))


def lay_out_copy(folder: Path, target: Path) -> Path:
    """Return ``target``, a copy of the folder that a container's user can read, whatever its own modes.

    Files that everybody may read are linked where the file system allows it, so large weights are not copied.
    """
    target.mkdir(mode=0o755)
    for path in sorted(folder.rglob("*")):
        place = target / path.relative_to(folder)
        if path.is_dir():
            place.mkdir(mode=0o755)
        elif path.stat().st_mode & 0o004 == 0 or not _is_linked(path, place):
            shutil.copyfile(path, place)
            place.chmod(0o644)
    for path in (target, *(path for path in target.rglob("*") if path.is_dir())):
        path.chmod(0o755)  # whatever the umask was
    return target


def _is_linked(path: Path, place: Path) -> bool:
    try:
        place.hardlink_to(path)
    except OSError:  # another file system, or one without links
        return False
    return True


def _refuse_code(path: Path) -> None:
    """``auto_map`` makes the loader import Python files of the model's author."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsafeModelError(str(path), reason=f"not JSON: {error}") from error
    if isinstance(fields, dict) and "auto_map" in fields:
        raise UnsafeModelError(str(path), reason="`auto_map` asks to run the model's own code")
