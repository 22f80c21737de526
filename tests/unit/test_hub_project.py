"""A project whose model comes from a hub: lock, check and fetch, with the real client and a server here."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from repro_image.adapters.store import Store
from repro_image.core.lockfile import HubLock
from repro_image.core.reference import sha256_digest
from repro_image.errors import HubAccessError, StaleLockError, UnsafeModelError
from repro_image.steps.fresh import check_locks
from repro_image.steps.record import laid_out_model
from tests.hub_server import FILES, WEIGHTS, Hub, configured_hub
from tests.unit.supply_samples import IMAGE, IMAGE_TOML, Supply

NAME = "team/tiny"
TOKEN = "hf_aSecretOfTheUser"
TABLE = f"""[model]
kind = "hub"
repository = "{NAME}"
revision = "main"
license = "Apache-2.0"
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with configured_hub(monkeypatch, tmp_path) as found:
        found.commit(NAME, FILES)
        yield found


@pytest.fixture
def supply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supply:
    supply = Supply(tmp_path, monkeypatch)
    before, _, rest = IMAGE_TOML.partition("[model]\n")
    supply.write(f"images/{IMAGE}/image.toml", f"{before}{TABLE}[golden]{rest.partition('[golden]')[2]}")
    return supply


def model_lock(supply: Supply) -> HubLock:
    lock = supply.project.model_lock(IMAGE)
    assert isinstance(lock, HubLock)
    return lock


def test_from_nothing_to_a_model_folder(supply: Supply, hub: Hub, tmp_path: Path) -> None:
    assert "model.json" in supply.lock()
    assert check_locks(supply.project, IMAGE) == ()
    supply.store = Store(tmp_path / "another-store")
    fetched = supply.fetch()
    assert fetched.made == ("root",)  # nothing is converted
    assert fetched.files == 9  # installer, two wheels, two Debian packages, four files of the model
    assert supply.fetch().files == 0
    folder = laid_out_model(supply.store, model_lock(supply), tmp_path)
    taken = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert taken == {
        name: data for name, data in FILES.items() if name not in (".gitattributes", "README.md")
    }


def test_check_and_a_second_lock_ask_no_hub(supply: Supply, hub: Hub) -> None:
    supply.lock()
    hub.commit(NAME, {**FILES, "model.safetensors": WEIGHTS[::-1]})
    asked = len(hub.front.requests)
    assert check_locks(supply.project, IMAGE) == ()
    assert supply.lock() == ()
    assert len(hub.front.requests) == asked


def test_an_upgrade_moves_the_branch(supply: Supply, hub: Hub) -> None:
    supply.lock()
    newest = hub.commit(NAME, {**FILES, "model.safetensors": WEIGHTS[::-1]})
    assert "model.json" in supply.lock(upgrade=True)
    assert model_lock(supply).commit == newest


def test_another_kind_of_model_makes_the_lock_stale(supply: Supply, hub: Hub) -> None:
    supply.lock()
    supply.write(f"images/{IMAGE}/image.toml", IMAGE_TOML)
    assert [type(fault) for fault in check_locks(supply.project, IMAGE)] == [StaleLockError]
    assert supply.lock() == ("model.json",)
    assert check_locks(supply.project, IMAGE) == ()


def test_a_refused_model_leaves_the_old_locks_as_they_were(supply: Supply, hub: Hub) -> None:
    supply.lock()
    before = supply.lock_files()
    hub.commit(NAME, {**FILES, "config.json": b'{"auto_map": {"AutoModel": "m.M"}}'})
    with pytest.raises(UnsafeModelError):
        supply.lock(upgrade=True)
    assert supply.lock_files() == before


def test_no_address_and_no_token_of_the_hub_is_in_a_lock_or_said(
    supply: Supply, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories[NAME].token = TOKEN
    supply.lock()
    supply.fetch()
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}2")
    hub.repositories[NAME].is_gated = True
    supply.store.path(model_lock(supply).files[0].sha256).unlink()
    with pytest.raises(HubAccessError) as caught:
        supply.fetch()
    told = [str(caught.value), *supply.notes.lines, *(data.decode() for data in supply.lock_files().values())]
    assert all(TOKEN not in text and "127.0.0.1" not in text for text in told)


def test_a_lock_that_names_a_model_with_code_never_becomes_a_folder(
    supply: Supply, hub: Hub, tmp_path: Path
) -> None:
    """Whoever writes a lock by hand can make its digests right; the rules hold all the same."""
    supply.lock()
    supply.fetch()
    lock = model_lock(supply)
    data = b'{"auto_map": {"AutoModel": "m.M"}}'
    supply.store.add_bytes(data, sha256_digest(data))
    config, *others = lock.files
    forged = replace(lock, files=(replace(config, sha256=sha256_digest(data)), *others))
    with pytest.raises(UnsafeModelError, match="auto_map"):
        laid_out_model(supply.store, forged, tmp_path)
    assert not (tmp_path / "model").exists()
