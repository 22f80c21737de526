import zipfile
from pathlib import Path

import pytest

from repro_image.adapters.contexts import lay_out_contexts
from repro_image.adapters.store import Store
from repro_image.core.layers import LayerGroup
from repro_image.core.lockfile import LockedWheel
from repro_image.errors import CorruptFileError, MissingFileError


def add(store: Store, folder: Path, filename: str, data: bytes) -> LockedWheel:
    file = folder / filename
    file.write_bytes(data)
    name, version = filename.split("-")[:2]
    return LockedWheel(
        name=name, version=version, sha256=store.add(file), filename=filename, size_bytes=len(data)
    )


def make_installer(store: Store, folder: Path, member: str = "uv-1.data/scripts/uv") -> LockedWheel:
    with zipfile.ZipFile(folder / "made.zip", "w") as archive:
        archive.writestr(member, b"program")
    return add(store, folder, "uv-1-py3-none-any.whl", (folder / "made.zip").read_bytes())


def test_the_contexts_hold_what_is_locked_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    wheel = add(store, tmp_path, "a-1-py3-none-any.whl", b"wheel")
    groups = [LayerGroup(name="bucket-0", wheels=(wheel,))]
    folder = tmp_path / "contexts"
    contexts = lay_out_contexts(folder, groups, installer=make_installer(store, tmp_path), store=store)
    assert contexts == {name: str(folder / name) for name in ("wheels", "locks", "tools")}
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert files == {
        "wheels/bucket-0/a-1-py3-none-any.whl": b"wheel",
        "locks/bucket-0.txt": groups[0].requirements.encode(),
        "tools/uv": b"program",
    }
    assert (folder / "tools/uv").stat().st_mode & 0o777 == 0o755


def test_a_wheel_that_rotted_in_the_store_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    wheel = add(store, tmp_path, "a-1-py3-none-any.whl", b"wheel")
    store.path(wheel.sha256).write_bytes(b"whole")
    installer = make_installer(store, tmp_path)
    with pytest.raises(CorruptFileError):
        lay_out_contexts(
            tmp_path / "c", [LayerGroup(name="g", wheels=(wheel,))], installer=installer, store=store
        )


def test_a_wheel_that_is_not_in_the_store_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    wheel = add(store, tmp_path, "a-1-py3-none-any.whl", b"wheel")
    store.path(wheel.sha256).unlink()
    installer = make_installer(store, tmp_path)
    with pytest.raises(MissingFileError):
        lay_out_contexts(
            tmp_path / "c", [LayerGroup(name="g", wheels=(wheel,))], installer=installer, store=store
        )


def test_an_installer_without_a_program_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    installer = make_installer(store, tmp_path, member="uv/__init__.py")
    with pytest.raises(CorruptFileError, match="a wheel of uv"):
        lay_out_contexts(tmp_path / "c", [], installer=installer, store=store)
