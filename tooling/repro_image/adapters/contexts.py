"""The build contexts of one image, laid out from the store: nothing in them comes from anywhere else."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

from repro_image.adapters.store import Store
from repro_image.adapters.wheel_files import refuse_clashes
from repro_image.core.layers import LayerGroup
from repro_image.core.lockfile import LockedDeb, LockedWheel
from repro_image.errors import CorruptFileError


def lay_out_contexts(
    folder: Path, groups: Iterable[LayerGroup], *, installer: LockedWheel, store: Store
) -> dict[str, str]:
    """Make the contexts ``wheels``, ``locks`` and ``tools`` below ``folder``; return name -> folder.

    Every wheel is read and compared with its locked digest first. Raises: CorruptFileError, MissingFileError,
        ClashingWheelsError.
    """
    wheels, locks, tools = (folder / name for name in ("wheels", "locks", "tools"))
    locks.mkdir(parents=True)
    for group in groups:
        for wheel in group.wheels:
            store.verify(wheel.sha256)
        refuse_clashes(group.wheels, store=store)
        store.lay_out(wheels / group.name, {wheel.filename: wheel.sha256 for wheel in group.wheels})
        (locks / f"{group.name}.txt").write_text(group.requirements)
    store.verify(installer.sha256)
    tools.mkdir()
    _extract_uv(store.path(installer.sha256), tools / "uv", digest=installer.sha256)
    return {"wheels": str(wheels), "locks": str(locks), "tools": str(tools)}


def lay_out_debs(folder: Path, debs: Iterable[LockedDeb], *, store: Store) -> dict[str, str]:
    """Make the context ``debs`` below ``folder``; every package is compared with its locked digest first.

    Raises: CorruptFileError, MissingFileError.
    """
    files = {Path(deb.path).name: deb.sha256 for deb in debs}
    for digest in files.values():
        store.verify(digest)
    store.lay_out(folder / "debs", files)
    return {"debs": str(folder / "debs")}


def _extract_uv(wheel: Path, target: Path, *, digest: str) -> None:
    """Write the program out of uv's own wheel; it is a single file that needs nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".data/scripts/uv")]
        if not names:
            raise CorruptFileError(str(wheel), expected="a wheel of uv", found=f"no program in {digest}")
        target.write_bytes(archive.read(names[0]))
    target.chmod(0o755)
