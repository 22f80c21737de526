"""Where an epoch's image was pushed to: records that follow the epoch."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from repro_image.adapters.ledger_files import Ledger
from repro_image.core.epoch import Manifest, PushRecord
from repro_image.core.ledger import (
    StoredEpoch,
    find_digest,
    parse_ledger,
    parse_record,
    push_path,
    statement_bytes,
)
from repro_image.errors import BrokenChainError, BrokenRecordError
from tests.ledger_samples import FOLDER, IMAGE, contents, digest_of, sample_epoch


def sample_push(following: str, **fields: Any) -> PushRecord:
    record = PushRecord(
        follows=following,
        repository="ghcr.io/team/vllm-cpu",
        manifest=Manifest(
            digest=digest_of("pushed"),
            media_type="application/vnd.oci.image.manifest.v1+json",
            compression="zstd",
        ),
        config=digest_of("config"),
        size_bytes=600_000_000,
        recorded_at="2026-11-22T10:00:00Z",
        tool="0.1.0",
    )
    return msgspec.structs.replace(record, **fields)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path, IMAGE)


@pytest.fixture
def epoch(ledger: Ledger) -> StoredEpoch:
    return ledger.append_epoch(lambda number, previous: sample_epoch(number, previous))


def test_a_push_reads_back_as_it_was_written(epoch: StoredEpoch) -> None:
    record = sample_push(epoch.digest)
    assert parse_record(statement_bytes(record, epoch.epoch.image), PushRecord, path="x") == record
    assert record.reference == f"ghcr.io/team/vllm-cpu@{digest_of('pushed')}"


def test_a_push_joins_its_epoch_and_changes_no_other_file(
    ledger: Ledger, epoch: StoredEpoch, tmp_path: Path
) -> None:
    before = contents(tmp_path)
    push = ledger.append_push(epoch, sample_push(epoch.digest))
    [read] = ledger.read()
    assert read.pushes == (push,)
    assert [form.compression for form in read.manifests] == ["uncompressed", "zstd"]
    now = contents(tmp_path)
    assert {path: now[path] for path in before} == before
    assert len(now) == len(before) + 1


def test_the_epoch_is_found_by_the_digest_that_a_registry_has(ledger: Ledger, epoch: StoredEpoch) -> None:
    assert find_digest(ledger.read(), digest_of("pushed")) is None
    ledger.append_push(epoch, sample_push(epoch.digest))
    found = find_digest(ledger.read(), digest_of("pushed"))
    assert found is not None
    assert found.digest == epoch.digest


def test_the_same_place_is_recorded_once_and_another_beside_it(ledger: Ledger, epoch: StoredEpoch) -> None:
    first = ledger.append_push(epoch, sample_push(epoch.digest))
    again = ledger.append_push(epoch, sample_push(epoch.digest, recorded_at="2026-11-23T10:00:00Z"))
    assert again == first
    ledger.append_push(epoch, sample_push(epoch.digest, repository="docker.io/team/vllm-cpu"))
    assert len(ledger.read()[0].pushes) == 2


@pytest.mark.parametrize(
    ("fields", "kind", "told"),
    [
        ({"config": digest_of("other")}, BrokenRecordError, "what was pushed is"),
        ({"repository": "ghcr.io/team/../x"}, BrokenRecordError, "is no repository"),
        ({"repository": "--help"}, BrokenRecordError, "is no repository"),
        ({"follows": digest_of("x")}, BrokenChainError, "the record follows"),
    ],
)
def test_a_push_that_does_not_belong_to_the_epoch_is_refused(
    ledger: Ledger, epoch: StoredEpoch, tmp_path: Path, fields: dict[str, str], kind: Any, told: str
) -> None:
    before = contents(tmp_path)
    with pytest.raises(kind, match=told):
        ledger.append_push(epoch, sample_push(epoch.digest, **fields))
    assert contents(tmp_path) == before


def test_a_changed_push_is_refused(ledger: Ledger, epoch: StoredEpoch, tmp_path: Path) -> None:
    ledger.append_push(epoch, sample_push(epoch.digest))
    [path] = tmp_path.glob("epochs/0001/push-*.json")
    path.write_text(path.read_text().replace("ghcr.io/team", "evil.io/team"))
    with pytest.raises(BrokenRecordError, match="the file was changed"):
        ledger.read()


def test_a_push_under_another_name_is_refused(epoch: StoredEpoch) -> None:
    data = statement_bytes(sample_push(epoch.digest), epoch.epoch.image)
    files = {"0001/epoch.json": statement_bytes(epoch.epoch, epoch.epoch.image)}
    assert parse_ledger({**files, push_path(1, data): data}, image=IMAGE, folder=FOLDER)[0].pushes
    with pytest.raises(BrokenRecordError, match="the file's name is not its digest"):
        parse_ledger({**files, "0001/push-000000000000.json": data}, image=IMAGE, folder=FOLDER)
    assert json.loads(data)["predicateType"] == "urn:repro-image:push:1"
