"""A rebuild that comes out the same is recorded; one that does not is told, and nothing is recorded."""

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from repro_image.adapters.buildx import BuiltImage
from repro_image.adapters.files import Project
from repro_image.adapters.ledger_files import Ledger
from repro_image.adapters.store import Store
from repro_image.cli import group
from repro_image.core.ledger import StoredEpoch
from repro_image.steps import prove as prove_step
from tests.ledger_samples import IMAGE, digest_of, sample_epoch

BUILDER = {"engine": "26.1.5", "engine_id": "one"}


class Quiet:
    def line(self, text: str) -> None: ...

    def status(self, text: str) -> None: ...


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredEpoch:
    """An epoch whose image is built anew as the test says: by default as the very same one."""
    (tmp_path / "images" / IMAGE).mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("")
    plan = SimpleNamespace(repository="made/image", build_tag="build-12345678")
    monkeypatch.setattr(prove_step, "plan_image", lambda *_: plan)
    monkeypatch.setattr(prove_step, "builder_versions", lambda *_: BUILDER)
    rebuilt_as(monkeypatch, digest_of("config"))
    ledger = Ledger(Project(tmp_path).lock_folder(IMAGE), IMAGE)
    return ledger.append_epoch(lambda number, previous: sample_epoch())


def rebuilt_as(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    built = BuiltImage(config=config, manifest=digest_of("manifest"), media_type="made", size_bytes=1)
    monkeypatch.setattr(prove_step, "make_image", lambda *_, **__: built)


def prove(folder: Path, stored: StoredEpoch, untagged: list[str]) -> prove_step.Proof:
    engine: Any = SimpleNamespace(untag=untagged.append)
    return prove_step.prove(
        Project(folder),
        stored,
        store=Store(folder / "store"),
        engine=engine,
        reporter=Quiet(),
        now=lambda: datetime(2026, 11, 22, tzinfo=UTC),
    )


def proofs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "locks").rglob("proof-*.json"))


def test_the_same_image_joins_the_epoch_as_a_proof_and_its_build_tag_goes(
    tmp_path: Path, stored: StoredEpoch
) -> None:
    untagged: list[str] = []
    proof = prove(tmp_path, stored, untagged)
    (again,) = Ledger(Project(tmp_path).lock_folder(IMAGE), IMAGE).read()
    (recorded,) = again.proofs
    assert proof == prove_step.Proof(
        config=digest_of("config"), builder=BUILDER, is_other_engine=False, record=recorded.digest
    )
    assert recorded.record.builder == BUILDER
    assert recorded.record.follows == stored.digest
    assert recorded.record.recorded_at == "2026-11-22T00:00:00Z"
    assert untagged == ["made/image:build-12345678"]


def test_another_image_is_told_file_by_file_and_nothing_is_recorded(
    tmp_path: Path, stored: StoredEpoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuilt_as(monkeypatch, digest_of("another config"))
    monkeypatch.setattr(prove_step, "find_image", lambda text, **_: text)
    monkeypatch.setattr(prove_step, "diff_images", lambda a, b, **_: (a, b))
    untagged: list[str] = []
    proof = prove(tmp_path, stored, untagged)
    epoch, sides = stored.epoch, cast(object, proof.difference)
    assert sides == (f"{epoch.repository}:{epoch.tag}", "made/image:build-12345678")
    assert proof.record is None
    assert proofs(tmp_path) == []
    assert untagged == ["made/image:build-12345678"]


def test_a_failed_rebuild_records_nothing(
    tmp_path: Path, stored: StoredEpoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no more disk")

    monkeypatch.setattr(prove_step, "make_image", fail)
    with pytest.raises(OSError, match="no more disk"):
        prove(tmp_path, stored, [])
    assert proofs(tmp_path) == []


def test_a_proof_without_an_epoch_is_refused() -> None:
    result = CliRunner().invoke(group, ["build", "--prove", "--no-golden"], standalone_mode=False)
    assert result.exit_code == 2 or getattr(result.exception, "exit_code", None) == 2
