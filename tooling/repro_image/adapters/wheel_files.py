"""What a wheel would install, read from its list of members alone."""

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from repro_image.adapters.store import Store
from repro_image.core.lockfile import LockedWheel
from repro_image.errors import BrokenWheelError, ClashingWheelsError

# Where an installer puts the folders of NAME-VERSION.data, below its target.
_SCHEMES = {"purelib": "", "platlib": "", "data": "", "scripts": "bin/", "headers": "include/"}


def refuse_clashes(wheels: Iterable[LockedWheel], *, store: Store) -> None:
    """Raise ClashingWheelsError where two wheels of one layer install other content under one path.

    They are installed at the same time, so which of the two stays would be chance. In two layers the upper
    one's stays. Raises: BrokenWheelError.
    """
    seen: dict[str, tuple[LockedWheel, tuple[int, int]]] = {}
    for wheel in wheels:
        for path, content in _contents(store.path(wheel.sha256), wheel):
            other, known = seen.setdefault(path, (wheel, content))
            if other is not wheel and known != content:
                raise ClashingWheelsError(other.filename, wheel.filename, path=path)


def _contents(file: Path, wheel: LockedWheel) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each installed path with the size and checksum of its content."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    # NotImplementedError is what zipfile raises for a later version of the format than it reads.
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise BrokenWheelError(wheel.filename, reason=str(error)) from error
    for member in members:
        if not member.is_dir():
            yield _installed(member.filename), (member.file_size, member.CRC)


def _installed(member: str) -> str:
    folder, _, rest = member.partition("/")
    scheme, _, path = rest.partition("/")
    return _SCHEMES[scheme] + path if folder.endswith(".data") and scheme in _SCHEMES else member
