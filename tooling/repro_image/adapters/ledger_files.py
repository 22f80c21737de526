"""The ledger of one image as files below locks/<image>/epochs: one create-only file per record."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from repro_image.adapters.create_only import LOCK, TEMPORARY, check_writable, create, exclusive, told
from repro_image.core.epoch import ClassRecord, Epoch, ProofRecord, PushRecord
from repro_image.core.ledger import (
    MAX_RECORD_BYTES,
    StoredClass,
    StoredEpoch,
    StoredProof,
    StoredPush,
    check_contains,
    check_new_class,
    class_path,
    clock_warnings,
    epoch_path,
    parse_class,
    parse_ledger,
    parse_next,
    parse_proof,
    parse_push,
    proof_path,
    push_path,
    statement_bytes,
)

log = logging.getLogger(__name__)


class Ledger:
    """locks/<image>/epochs.

    locks_folder: locks/<image>.
    timeout_s:    how long a writer waits for another one.
    """

    def __init__(self, locks_folder: Path, image: str, *, timeout_s: float = 30.0) -> None:
        self.image, self.name = image, f"locks/{image}/epochs"
        self._folder, self._timeout_s = locks_folder / "epochs", timeout_s

    def read(self) -> tuple[StoredEpoch, ...]:
        """Return all epochs in order, none where nothing was recorded yet; everything about them is proved.

        What a killed writer left behind (an unlinked file, an empty folder) is not part of the ledger.
        Raises: LedgerError, NewerRecordError, LedgerDiskError.
        """
        with told(self.name, state="the ledger cannot be read"):
            files = dict(self._files())
        return parse_ledger(files, image=self.image, folder=self.name)

    def check_writable(self) -> None:
        """Prove that a record could be written. Call it before any long work. Raises: LedgerDiskError."""
        check_writable(self._folder, name=self.name)

    def append_epoch(self, make: Callable[[int, str | None], Epoch]) -> StoredEpoch:
        """Write the next epoch and return it.

        make: number and the previous record's digest (None for epoch 1) -> the record; the lock is held.
        Raises: LedgerError, LedgerBusyError, LedgerDiskError; the ledger is as it was, or the error says so.
        """
        with exclusive(self._folder, name=self.name, timeout_s=self._timeout_s):
            stored = self.read()
            record = make(len(stored) + 1, stored[-1].digest if stored else None)
            data = statement_bytes(record, record.image)
            appended = parse_next(data, stored, image=self.image, folder=self.name)
            create(self._folder, epoch_path(record.number), data, name=self.name)
        for warning in clock_warnings((*stored, appended)):
            if warning.startswith(f"epoch {record.number} "):
                log.warning("%s", warning)
        return appended

    def append_class(self, epoch: StoredEpoch, record: ClassRecord) -> StoredClass:
        """Add a numeric class to ``epoch``. Raises: AlreadyRecordedError, and as append_epoch."""
        number, data = epoch.epoch.number, statement_bytes(record, epoch.epoch.image)
        with exclusive(self._folder, name=self.name, timeout_s=self._timeout_s):
            present = self._present(epoch)
            check_new_class(present, record)
            file = class_path(number, record)
            added = parse_class(data, present, path=f"{self.name}/{file}")
            create(self._folder, file, data, name=self.name)
        return added

    def append_proof(self, epoch: StoredEpoch, record: ProofRecord) -> StoredProof:
        """Add a rebuild proof to ``epoch``. Raises: as append_class."""
        number, data = epoch.epoch.number, statement_bytes(record, epoch.epoch.image)
        with exclusive(self._folder, name=self.name, timeout_s=self._timeout_s):
            file = proof_path(number, data)
            proof = parse_proof(data, self._present(epoch), path=f"{self.name}/{file}")
            create(self._folder, file, data, name=self.name)
        return proof

    def append_push(self, epoch: StoredEpoch, record: PushRecord) -> StoredPush:
        """Add a push to ``epoch``; one that names the same place again is the one that is there.

        Raises: as append_class.
        """
        number, data = epoch.epoch.number, statement_bytes(record, epoch.epoch.image)
        with exclusive(self._folder, name=self.name, timeout_s=self._timeout_s):
            present = self._present(epoch)
            for known in present.pushes:
                if known.record.reference == record.reference:
                    return known
            file = push_path(number, data)
            push = parse_push(data, present, path=f"{self.name}/{file}")
            create(self._folder, file, data, name=self.name)
        return push

    def _present(self, epoch: StoredEpoch) -> StoredEpoch:
        """Return ``epoch`` as the ledger holds it now, with what others have added."""
        stored = self.read()
        check_contains(stored, epoch.digest, folder=self.name)
        return stored[epoch.epoch.number - 1]

    def _files(self) -> Iterator[tuple[str, bytes]]:
        """Yield (path below the folder, bytes); what no ledger has comes without bytes: its name is
        refused.
        """
        try:
            entries = list(os.scandir(self._folder))
        except FileNotFoundError:  # nothing was recorded yet
            return
        for entry in entries:
            if entry.name == LOCK or entry.name.startswith(TEMPORARY):
                continue
            if not entry.is_dir(follow_symlinks=False):
                yield entry.name, b""
                continue
            for file in os.scandir(entry.path):
                is_file = file.is_file(follow_symlinks=False)
                yield (
                    f"{entry.name}/{file.name}{'' if is_file else '/'}",
                    _read(file.path) if is_file else b"",
                )


def _read(path: str) -> bytes:
    """Return the file's bytes, one more than a record can have at most."""
    with Path(path).open("rb") as file:
        return file.read(MAX_RECORD_BYTES + 1)
