"""adapters/goldens.py."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard

from repro_image.adapters import goldens as module
from repro_image.adapters.goldens import Goldens
from repro_image.core.golden_file import golden_bytes, golden_digest
from repro_image.core.reference import sha256_digest
from repro_image.errors import BrokenRecordError, LedgerDiskError, LedgerError, NewerRecordError
from tests.ledger_samples import IMAGE, digest_of, sample_golden


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "locks" / IMAGE / "goldens"


@pytest.fixture
def goldens(folder: Path) -> Goldens:
    return Goldens(folder)


def put(goldens: Goldens, data: bytes, *, digest: str | None = None) -> str:
    """Store ``data`` under its own, or another, digest, past all checks."""
    digest = digest or sha256_digest(data)
    goldens.path(digest).parent.mkdir(parents=True, exist_ok=True)
    goldens.path(digest).write_bytes(zstandard.ZstdCompressor().compress(data))
    return digest


def test_a_golden_is_stored_by_its_digest_and_reads_back(goldens: Goldens, folder: Path) -> None:
    digest = goldens.write(sample_golden())
    assert digest == golden_digest(sample_golden())
    assert goldens.read(digest) == sample_golden()
    assert goldens.digests() == (digest,)
    assert goldens.path(digest) == folder / f"{digest[7:]}.golden.zst"
    assert goldens.path(digest).stat().st_mode & 0o777 == 0o644


def test_a_golden_that_is_there_is_left_as_it_is(goldens: Goldens) -> None:
    path = goldens.path(goldens.write(sample_golden()))
    before = path.stat()
    goldens.write(sample_golden())
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


def test_a_golden_that_is_there_and_corrupt_is_not_taken_for_good(goldens: Goldens) -> None:
    path = goldens.path(goldens.write(sample_golden()))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(LedgerError):
        goldens.write(sample_golden())


def test_a_missing_golden_is_named(goldens: Goldens) -> None:
    with pytest.raises(BrokenRecordError, match="a golden is missing that an epoch names") as caught:
        goldens.read(digest_of("x"))
    assert caught.value.exit_code == 6
    assert caught.value.where == f"locks/{IMAGE}/goldens/{digest_of('x')[7:]}.golden.zst"


def test_a_changed_golden_file_is_refused_or_reads_as_it_was(goldens: Goldens) -> None:
    digest = goldens.write(sample_golden())
    data = goldens.path(digest).read_bytes()
    changed = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(0, len(data), 7)]
    for bad in (*changed, b"", data[:-1], data[:20], data + b"\0", data + data):
        goldens.path(digest).write_bytes(bad)
        with suppress(BrokenRecordError):  # else it was a bit of the frame's header that has no meaning
            assert goldens.read(digest) == sample_golden()


def test_the_golden_of_another_digest_is_refused_with_both(goldens: Goldens) -> None:
    other = golden_bytes(sample_golden(last_token=8))
    put(goldens, other, digest=digest_of("x"))
    with pytest.raises(BrokenRecordError) as caught:
        goldens.read(digest_of("x"))
    assert (
        caught.value.what == f"the golden is corrupt: expected {digest_of('x')}, found {sha256_digest(other)}"
    )


@pytest.mark.parametrize("data", [b"[]", b"{}", b'{"format":1}', b'{"format":2}\n', b"\xff", b"NaN"])
def test_what_is_no_golden_is_refused(goldens: Goldens, data: bytes) -> None:
    with pytest.raises(BrokenRecordError, match="not a golden"):
        goldens.read(put(goldens, data))


def test_a_golden_that_is_cut_is_refused_also_under_its_own_digest(goldens: Goldens) -> None:
    with pytest.raises(BrokenRecordError, match="a column of bytes is too short"):
        goldens.read(put(goldens, golden_bytes(sample_golden())[:-1]))


def test_a_golden_of_a_newer_form_asks_for_a_newer_tool(goldens: Goldens) -> None:
    newer = golden_bytes(sample_golden()).replace(b'"format":2', b'"format":3', 1)
    with pytest.raises(NewerRecordError, match="golden format 3, known is 2") as caught:
        goldens.read(put(goldens, newer))
    assert caught.value.exit_code == 3


def test_a_golden_that_claims_too_much_is_not_unpacked(
    goldens: Goldens, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = goldens.write(sample_golden())
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(BrokenRecordError, match="a golden cannot have"):
        goldens.read(digest)


def test_a_golden_without_a_size_in_its_header_is_refused(goldens: Goldens) -> None:
    digest = goldens.write(sample_golden())
    goldens.path(digest).write_bytes(
        zstandard.ZstdCompressor(write_content_size=False).compress(golden_bytes(sample_golden()))
    )
    with pytest.raises(BrokenRecordError, match="a golden cannot have -1 bytes"):
        goldens.read(digest)


def test_another_file_among_the_goldens_is_refused(goldens: Goldens, folder: Path) -> None:
    assert goldens.digests() == ()
    goldens.write(sample_golden())
    (folder / ".new-99").write_bytes(b"left by a killed writer")
    (folder / "notes.txt").write_text("x")
    with pytest.raises(BrokenRecordError, match="does not belong among the goldens"):
        goldens.digests()


def test_what_a_killed_writer_left_is_cleaned_by_the_next(goldens: Goldens, folder: Path) -> None:
    goldens.write(sample_golden())
    (folder / ".new-99").write_bytes(b"left by a killed writer")
    goldens.write(sample_golden(last_token=8))
    assert not (folder / ".new-99").exists()


def test_a_folder_that_cannot_be_made_is_told(folder: Path, goldens: Goldens) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("a file")
    with pytest.raises(LedgerDiskError, match="nothing was written") as caught:
        goldens.write(sample_golden())
    assert caught.value.exit_code == 5
    assert os.listdir(folder.parent) == ["goldens"]  # noqa: PTH208 - names only


def test_a_path_is_made_of_digests_alone(goldens: Goldens) -> None:
    with pytest.raises(ValueError, match=r"\.\."):
        goldens.path("../../x")
