"""A model folder that the user names: looked at before anything of it runs, and hashed."""

import shutil
from pathlib import Path

from repro_image.adapters.store import hash_file
from repro_image.core.canonical import canonical_digest
from repro_image.core.lockfile import ModelFile
from repro_image.core.model_files import refuse_unsafe
from repro_image.errors import UnsafeModelError


def model_folder_digest(folder: Path) -> str:
    """Return the digest of the folder's files, made as the model lock's. Raises: UnsafeModelError."""
    paths = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()):
        if path.is_symlink() or not path.is_file():
            raise UnsafeModelError(str(path), reason="it is no regular file")
        paths[path.relative_to(folder).as_posix()] = path
    refuse_unsafe(paths, where=str(folder), read=lambda name: paths[name].read_bytes())
    return canonical_digest(
        tuple(
            ModelFile(path=name, sha256=hash_file(path), size_bytes=path.stat().st_size)
            for name, path in paths.items()
        )
    )


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
