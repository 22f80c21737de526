"""Changes that verify must find, each made for real; the recorded golden is never edited."""

import json
import shutil
from pathlib import Path

import pytest

from repro_image.adapters.engine import ROOT_REPOSITORY
from repro_image.adapters.store import Store
from tests.e2e.conftest import Recorded
from tests.scratch import IMAGE, Scratch, docker

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(1200)]


def model_files(scratch: Scratch) -> dict[str, str]:
    """Path in the model folder -> digest, as model.json locks it."""
    lock = json.loads((scratch.locks / "model.json").read_text())
    return {file["path"]: file["sha256"] for file in lock["files"]}


def reason(found: object) -> str:
    comparison = getattr(found, "json")["comparison"]  # noqa: B009 - a property that parses
    return str(comparison["reason"])


def test_another_dtype_is_found(epoch: Recorded) -> None:
    found = epoch.scratch.run("verify", epoch.tag, "--set", "dtype=float32", "--json")
    assert found.code == 10, found.err
    assert reason(found) in ("weights", "numeric")


@pytest.mark.parametrize("seed", ["7", "8"])
def test_another_sampling_seed_is_found_as_sampling(epoch: Recorded, seed: str) -> None:
    found = epoch.scratch.run("verify", epoch.tag, "--set", f"sampling.seed={seed}", "--json")
    assert found.code == 10, found.err
    assert reason(found) == "sampling"


def test_one_flipped_bit_of_one_tensor_is_found_as_weights(epoch: Recorded, tmp_path: Path) -> None:
    store = Store(epoch.scratch.store)
    for path, digest in model_files(epoch.scratch).items():
        shutil.copy(store.path(digest), tmp_path / path)
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1001] ^= 1  # in the last tensor: the header is at the beginning
    weights.write_bytes(data)
    found = epoch.scratch.run("verify", epoch.tag, "--model", str(tmp_path), "--json")
    assert found.code == 10, found.err
    assert reason(found) == "weights"


def test_another_thread_count_is_not_comparable_and_the_field_is_named(epoch: Recorded) -> None:
    found = epoch.scratch.run("verify", epoch.tag, "--set", "threads=1")
    assert found.code == 11
    assert "threads" in found.out
    assert "expected 2" in found.out


def test_a_retagged_image_is_a_mismatch_with_both_digests(epoch: Recorded) -> None:
    manifest = docker("image", "inspect", "--format", "{{.Id}}", epoch.reference)
    root = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", ROOT_REPOSITORY).split()[0]
    kept = f"{epoch.reference.rpartition(':')[0]}:kept"
    docker("image", "tag", manifest, kept)
    docker("image", "tag", root, epoch.reference)
    try:
        found = epoch.scratch.run("verify", epoch.tag, "--json")
    finally:
        docker("image", "tag", kept, epoch.reference)
    assert found.code == 10, found.err
    comparison = found.json["comparison"]
    assert comparison["reason"] == "moved tag"
    assert comparison["images"]["expected"] == epoch.config
    assert comparison["images"]["found"].startswith("sha256:")
    assert comparison["images"]["found"] != epoch.config


def test_a_corrupt_model_file_is_refused_before_anything_runs(epoch: Recorded, tmp_path: Path) -> None:
    store, copy = Store(epoch.scratch.store), Store(tmp_path / "store")
    for digest in model_files(epoch.scratch).values():
        copy.add(store.path(digest))
    broken = copy.path(model_files(epoch.scratch)["config.json"])
    broken.write_bytes(broken.read_bytes().replace(b"silu", b"gelu"))
    found = epoch.scratch.run("verify", epoch.tag, store=copy.root)
    assert found.code == 3
    assert "corrupt" in found.err
    assert "golden run" not in found.err


def test_a_cut_ledger_file_is_refused_before_anything_runs(epoch: Recorded, tmp_path: Path) -> None:
    torn = Scratch(tmp_path / "torn", epoch.scratch.store)
    shutil.copytree(epoch.scratch.locks, torn.locks, dirs_exist_ok=True)
    record = torn.locks / "epochs/0001/epoch.json"
    record.write_bytes(record.read_bytes()[:-100])
    for command in (["verify", epoch.tag], ["build", IMAGE], ["epochs", "list"], ["epochs", "check"]):
        found = torn.run(*command)
        assert found.code == 6, (command, found.out, found.err)
        assert "0001/epoch.json" in found.err


@pytest.fixture(scope="module")
def smoke(epoch: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The same image with an epoch of suite smoke, whose prompts are long enough to be cached."""
    scratch = Scratch(tmp_path_factory.mktemp("smoke"), epoch.scratch.store)
    settings = scratch.folder / "pyproject.toml"
    text = settings.read_text()
    settings.write_text(text.replace('repository = "repro-image"', 'repository = "repro-image-test"'))
    build = scratch.run("build", IMAGE, "--json")
    assert build.code == 0, build.err
    assert build.seconds < 300, "recording a smoke epoch has a budget of five minutes"
    return Recorded(scratch, build, build.json[0]["reference"], build.json[0]["config"])


def test_the_suite_decides_nothing_about_the_image(epoch: Recorded, smoke: Recorded) -> None:
    assert smoke.config == epoch.config


def test_prefix_caching_is_found(smoke: Recorded) -> None:
    found = smoke.scratch.run("verify", smoke.tag, "--set", "enable_prefix_caching=true", "--json")
    assert found.code == 10, found.err
    assert reason(found) == "numeric"
