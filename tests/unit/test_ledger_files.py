"""adapters/ledger_files.py and adapters/create_only.py, on a real file system."""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from repro_image.adapters.create_only import create, exclusive
from repro_image.adapters.ledger_files import Ledger
from repro_image.core.epoch import Epoch
from repro_image.core.ledger import StoredEpoch
from repro_image.errors import (
    AlreadyRecordedError,
    BrokenChainError,
    BrokenRecordError,
    LedgerBusyError,
    LedgerDiskError,
    LedgerError,
    MissingRecordError,
)
from tests.ledger_samples import (
    IMAGE,
    contents,
    digest_of,
    sample_class_record,
    sample_epoch,
    sample_proof,
)


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    return tmp_path / "locks" / IMAGE


@pytest.fixture
def ledger(locks: Path) -> Ledger:
    return Ledger(locks, IMAGE, timeout_s=0.3)


@pytest.fixture
def umask_077() -> Iterator[None]:
    old = os.umask(0o077)
    yield
    os.umask(old)


def append(ledger: Ledger, count: int = 1) -> StoredEpoch:
    for _ in range(count):
        stored = ledger.append_epoch(sample_epoch)
    return stored


def test_a_ledger_that_does_not_exist_yet_is_empty_and_reading_makes_nothing(
    ledger: Ledger, locks: Path
) -> None:
    assert ledger.read() == ()
    assert not locks.exists()


def test_appended_epochs_are_numbered_chained_and_read_back(ledger: Ledger, locks: Path) -> None:
    first, second = append(ledger), append(ledger)
    assert ledger.read() == (first, second)
    assert (second.epoch.number, second.epoch.previous) == (2, first.digest)
    assert sorted(contents(locks)) == ["epochs/0001/epoch.json", "epochs/0002/epoch.json"]
    assert first.path == f"locks/{IMAGE}/epochs/0001/epoch.json"


def test_a_class_and_proofs_are_files_of_their_own_and_change_no_other(ledger: Ledger, locks: Path) -> None:
    first = append(ledger)
    before = contents(locks)
    added = ledger.append_class(first, sample_class_record(first.digest, threads=4))
    proof = ledger.append_proof(first, sample_proof(first.digest))
    after = contents(locks)
    assert before.items() < after.items()
    assert len(after) == 3
    [read] = ledger.read()
    assert (read.classes, read.proofs) == ((added,), (proof,))


def test_a_class_is_recorded_once(ledger: Ledger) -> None:
    first = append(ledger)
    ledger.append_class(first, sample_class_record(first.digest, threads=4))
    with pytest.raises(AlreadyRecordedError, match="already records class") as caught:
        ledger.append_class(first, sample_class_record(first.digest, threads=4))
    assert caught.value.exit_code == 2


def test_the_same_proof_is_recorded_once(ledger: Ledger) -> None:
    first = append(ledger)
    ledger.append_proof(first, sample_proof(first.digest))
    with pytest.raises(AlreadyRecordedError, match="the record is already there"):
        ledger.append_proof(first, sample_proof(first.digest))


def test_a_record_for_an_epoch_that_the_ledger_does_not_hold_is_refused(
    ledger: Ledger, tmp_path: Path
) -> None:
    append(ledger)
    other = Ledger(tmp_path / "other" / IMAGE, IMAGE).append_epoch(
        lambda number, previous: sample_epoch(number, previous, builder={})
    )
    with pytest.raises(MissingRecordError):
        ledger.append_class(other, sample_class_record(other.digest, threads=4))


def test_a_record_that_contradicts_itself_is_never_written(ledger: Ledger, locks: Path) -> None:
    append(ledger)
    before = contents(locks)
    with pytest.raises(BrokenRecordError):
        ledger.append_epoch(lambda number, previous: sample_epoch(number, previous, tag="e0002-00000000"))
    with pytest.raises(BrokenChainError):
        ledger.append_epoch(lambda number, _previous: sample_epoch(number, digest_of("other")))
    assert contents(locks) == before


def test_an_error_of_the_maker_frees_the_lock_and_writes_nothing(ledger: Ledger, locks: Path) -> None:
    def fail(_number: int, _previous: str | None) -> Epoch:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.append_epoch(fail)
    assert contents(locks) == {}
    assert append(ledger).epoch.number == 1


@pytest.mark.usefixtures("umask_077")
def test_files_are_readable_by_all_whatever_the_umask(ledger: Ledger, locks: Path) -> None:
    append(ledger)
    assert (locks / "epochs/0001/epoch.json").stat().st_mode & 0o777 == 0o644
    for folder in (locks, locks / "epochs", locks / "epochs/0001"):
        assert folder.stat().st_mode & 0o777 == 0o755


def test_what_a_killed_writer_left_is_ignored_and_cleaned_by_the_next(ledger: Ledger, locks: Path) -> None:
    first = append(ledger)
    (locks / "epochs/0002").mkdir()
    (locks / "epochs/.new-12345").write_bytes(b'{"half')
    assert ledger.read() == (first,)
    assert append(ledger).epoch.number == 2
    assert sorted(path.name for path in (locks / "epochs").iterdir()) == [".lock", "0001", "0002"]


def test_an_empty_folder_before_the_last_epoch_is_a_gap(ledger: Ledger, locks: Path) -> None:
    append(ledger, 3)
    (locks / "epochs/0002/epoch.json").unlink()
    with pytest.raises(BrokenChainError, match="epoch 2 is missing"):
        ledger.read()


def test_nothing_is_appended_to_a_broken_ledger(ledger: Ledger, locks: Path) -> None:
    append(ledger, 2)
    path = locks / "epochs/0001/epoch.json"
    path.write_bytes(path.read_bytes()[:-1])
    before = contents(locks)
    with pytest.raises(LedgerError):
        append(ledger)
    assert contents(locks) == before


@pytest.mark.parametrize("kind", ["file", "link", "folder link", "folder", "pipe"])
def test_what_is_no_record_is_refused_and_not_followed(ledger: Ledger, locks: Path, kind: str) -> None:
    append(ledger)
    epochs = locks / "epochs"
    if kind == "file":
        (epochs / "README").write_text("x")
    elif kind == "link":
        (epochs / "0001/class-0123456789ab.json").symlink_to("/etc/passwd")
    elif kind == "folder link":
        (epochs / "0002").symlink_to(epochs / "0001")
    elif kind == "folder":
        (epochs / "0001/epoch").mkdir()
    else:
        os.mkfifo(epochs / "0001/class-0123456789ab.json")
    with pytest.raises(BrokenRecordError, match="does not belong into a ledger"):
        ledger.read()


def test_writing_needs_a_folder_where_none_can_be(ledger: Ledger, locks: Path) -> None:
    locks.parent.mkdir()
    locks.write_text("a file where the folder belongs")
    with pytest.raises(LedgerDiskError, match="cannot be written") as caught:
        ledger.check_writable()
    assert caught.value.exit_code == 5
    with pytest.raises(LedgerDiskError, match="nothing was written"):
        append(ledger)


def test_the_check_before_work_leaves_nothing_behind(ledger: Ledger, locks: Path, tmp_path: Path) -> None:
    ledger.check_writable()
    assert list(tmp_path.iterdir()) == []
    append(ledger)
    before = sorted((locks / "epochs").iterdir())
    ledger.check_writable()
    assert sorted((locks / "epochs").iterdir()) == before


def test_a_writer_that_waits_too_long_names_the_holder(ledger: Ledger, locks: Path) -> None:
    with exclusive(locks / "epochs", name="locks", timeout_s=1), pytest.raises(LedgerBusyError) as caught:
        append(ledger)
    assert caught.value.exit_code == 5
    assert caught.value.holder.startswith(f"process {os.getpid()} on ")
    assert "another process is writing here for more than 0.3 s: process" in str(caught.value)


def test_a_writer_waits_for_the_one_before_it(locks: Path) -> None:
    patient = Ledger(locks, IMAGE, timeout_s=10)
    append(patient)
    handle = os.open(locks / "epochs/.lock", os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    threading.Timer(0.2, os.close, (handle,)).start()
    start = time.monotonic()
    assert append(patient).epoch.number == 2
    assert time.monotonic() - start > 0.15


def test_a_lock_file_left_by_a_dead_writer_locks_nothing(ledger: Ledger, locks: Path) -> None:
    (locks / "epochs").mkdir(parents=True)
    (locks / "epochs/.lock").write_text("process 1 on elsewhere\n")
    assert append(ledger).epoch.number == 1


def test_a_name_that_is_taken_is_never_written_over(tmp_path: Path) -> None:
    create(tmp_path, "0001/x.json", b"first", name="ledger")
    with pytest.raises(AlreadyRecordedError):
        create(tmp_path, "0001/x.json", b"second", name="ledger")
    assert (tmp_path / "0001/x.json").read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0001"]


def test_a_clock_that_goes_back_is_told_and_the_epoch_recorded(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    append(ledger)
    with caplog.at_level(logging.WARNING):
        ledger.append_epoch(
            lambda number, previous: sample_epoch(number, previous, recorded_at="1970-01-01T00:00:07Z")
        )
    assert [record.getMessage() for record in caplog.records] == [
        "epoch 2 is dated 1970-01-01T00:00:07Z, before this tool existed; check the machine's clock"
    ]
    append(ledger)
    assert [stored.epoch.number for stored in ledger.read()] == [1, 2, 3]


def test_two_hundred_epochs_are_read_in_the_blink_of_an_eye(ledger: Ledger, locks: Path) -> None:
    from repro_image.core.ledger import epoch_path, statement_bytes
    from repro_image.core.reference import sha256_digest

    previous = None
    for number in range(1, 201):
        epoch = sample_epoch(number, previous)
        data = statement_bytes(epoch, epoch.image)
        path = locks / "epochs" / epoch_path(number)
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        previous = sha256_digest(data)
    start = time.process_time()
    assert len(ledger.read()) == 200
    assert time.process_time() - start < 0.3
