import zipfile
from pathlib import Path

import pytest

from repro_image.adapters.contexts import lay_out_contexts
from repro_image.adapters.store import Store
from repro_image.core.layers import LayerGroup
from repro_image.core.lockfile import LockedWheel
from repro_image.errors import BrokenWheelError, ClashingWheelsError, CorruptFileError, MissingFileError
from tests.unit.wheels import wheel_bytes

WHEEL = wheel_bytes("a", "1", {"a.py": b"1"})


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
    wheel = add(store, tmp_path, "a-1-py3-none-any.whl", WHEEL)
    groups = [LayerGroup(name="bucket-0", wheels=(wheel,))]
    folder = tmp_path / "contexts"
    contexts = lay_out_contexts(folder, groups, installer=make_installer(store, tmp_path), store=store)
    assert contexts == {name: str(folder / name) for name in ("wheels", "locks", "tools")}
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert files == {
        "wheels/bucket-0/a-1-py3-none-any.whl": WHEEL,
        "locks/bucket-0.txt": groups[0].requirements.encode(),
        "tools/uv": b"program",
    }
    assert (folder / "tools/uv").stat().st_mode & 0o777 == 0o755


def test_a_wheel_that_rotted_in_the_store_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    wheel = add(store, tmp_path, "a-1-py3-none-any.whl", WHEEL)
    store.path(wheel.sha256).write_bytes(WHEEL[:-1])
    installer = make_installer(store, tmp_path)
    with pytest.raises(CorruptFileError):
        lay_out_contexts(
            tmp_path / "c", [LayerGroup(name="g", wheels=(wheel,))], installer=installer, store=store
        )


def test_a_wheel_that_is_not_in_the_store_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    wheel = add(store, tmp_path, "a-1-py3-none-any.whl", WHEEL)
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


def lay_out_wheels(folder: Path, *files: dict[str, bytes]) -> None:
    """Lay out one layer of wheels that hold these files."""
    store, names = Store(folder / "store"), "abc"
    wheels = tuple(
        add(store, folder, f"{name}-1-py3-none-any.whl", wheel_bytes(name, "1", content))
        for name, content in zip(names, files, strict=False)
    )
    group = LayerGroup(name="g", wheels=wheels)
    lay_out_contexts(folder / "c", [group], installer=make_installer(store, folder), store=store)


def test_two_wheels_of_a_layer_that_install_other_content_under_one_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClashingWheelsError) as caught:
        lay_out_wheels(tmp_path, {"x/__init__.py": b"1"}, {"y.py": b""}, {"x/__init__.py": b"2"})
    assert caught.value.what.startswith(
        "a-1-py3-none-any.whl and c-1-py3-none-any.whl both install x/__init__.py"
    )


def test_a_script_of_one_wheel_clashes_with_a_file_of_another(tmp_path: Path) -> None:
    with pytest.raises(ClashingWheelsError, match="bin/run"):
        lay_out_wheels(tmp_path, {"a-1.data/scripts/run": b"1"}, {"bin/run": b"2"})


def test_the_same_content_under_one_path_is_no_clash(tmp_path: Path) -> None:
    lay_out_wheels(tmp_path, {"x/__init__.py": b""}, {"x/__init__.py": b""})


def test_a_locked_file_that_is_no_wheel_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    wheel = add(store, tmp_path, "a-1-py3-none-any.whl", b"no zip")
    group = LayerGroup(name="g", wheels=(wheel,))
    installer = make_installer(store, tmp_path)
    with pytest.raises(BrokenWheelError, match="no wheel"):
        lay_out_contexts(tmp_path / "c", [group], installer=installer, store=store)
