"""Tell what an image is made of, in the words of its locks and its packages."""

from pathlib import Path

from repro_image.adapters.files import Project
from repro_image.adapters.package_files import read_deb_metadata, read_wheel_metadata
from repro_image.adapters.store import Store
from repro_image.core.bill import Bill, make_bill
from repro_image.core.lockfile import Locks
from repro_image.core.package_metadata import PackageMetadata
from repro_image.core.reporter import Reporter


def bill_of(project: Project, name: str, *, store: Store, reporter: Reporter) -> Bill:
    """Return the bill of the image ``name`` by its locks, whose packages are in the store.

    Raises: MissingFileError for what `fetch` has not brought yet; CorruptFileError, InvalidFileError.
    """
    locks = project.locks(name)
    reporter.status(f"reading what {len(locks.requirements.wheels)} wheels say of themselves")
    return make_bill(name, locks, _metadata(locks, store))


def has_packages(locks: Locks, store: Store) -> bool:
    """Return whether every package of the locks is in the store."""
    wheels = (store.has(wheel.sha256, wheel.size_bytes) for wheel in locks.requirements.wheels)
    return all(wheels) and all(store.has(deb.sha256, deb.size_bytes) for deb in locks.base.packages)


def _metadata(locks: Locks, store: Store) -> dict[str, PackageMetadata]:
    found = {}
    for wheel in locks.requirements.wheels:
        path = _checked(store, wheel.sha256)
        found[wheel.sha256] = read_wheel_metadata(path, name=wheel.filename, python=locks.requirements.python)
    for deb in locks.base.packages:
        found[deb.sha256] = read_deb_metadata(_checked(store, deb.sha256), name=deb.name)
    return found


def _checked(store: Store, digest: str) -> Path:
    store.verify(digest)
    return store.path(digest)
