"""core/ledger.py and core/strict_json.py."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro_image.core.canonical import canonical_digest, readable_json
from repro_image.core.epoch import ClassRecord, Epoch, ProofRecord
from repro_image.core.ledger import (
    StoredEpoch,
    check_contains,
    check_new_class,
    class_path,
    clock_warnings,
    epoch_path,
    find_digest,
    find_epoch,
    find_number,
    find_tag,
    find_text,
    parse_ledger,
    parse_record,
    proof_path,
    statement_bytes,
)
from repro_image.core.reference import parse_reference, sha256_digest
from repro_image.core.strict_json import StrictJsonError, parse_strict, readable_form
from repro_image.errors import (
    AlreadyRecordedError,
    BrokenChainError,
    BrokenRecordError,
    InvalidReferenceError,
    LedgerBusyError,
    LedgerDiskError,
    LedgerError,
    MissingRecordError,
    NewerRecordError,
    ReproImageError,
)
from tests.ledger_samples import (
    FOLDER,
    IMAGE,
    digest_of,
    sample_class,
    sample_class_record,
    sample_epoch,
    sample_proof,
)

PATH = f"{FOLDER}/0001/epoch.json"


def file_of(epoch: Epoch) -> bytes:
    return statement_bytes(epoch, epoch.image)


def chain(length: int, **last: Any) -> dict[str, bytes]:
    """Return the files of a ledger; ``last`` changes its last epoch."""
    files: dict[str, bytes] = {}
    previous = None
    for number in range(1, length + 1):
        data = file_of(sample_epoch(number, previous, **(last if number == length else {})))
        files[epoch_path(number)] = data
        previous = sha256_digest(data)
    return files


def parse(files: dict[str, bytes]) -> tuple[StoredEpoch, ...]:
    return parse_ledger(files, image=IMAGE, folder=FOLDER)


def resealed(data: bytes, change: Callable[[Any], None]) -> bytes:
    """Return the file with ``change`` made to it as somebody would who knows the form, digest included."""
    tree = json.loads(data)
    change(tree)
    del tree["predicate"]["content"]
    tree["predicate"]["content"] = canonical_digest(tree)
    return readable_json(tree).encode()


@pytest.fixture
def full() -> dict[str, bytes]:
    """Two epochs; the first has a further class and a proof."""
    files = chain(2)
    first = sample_epoch()
    follows = sha256_digest(files[epoch_path(1)])
    record = sample_class_record(follows, threads=4)
    files[class_path(1, record)] = statement_bytes(record, first.image)
    proof = statement_bytes(sample_proof(follows), first.image)
    files[proof_path(1, proof)] = proof
    return files


def test_a_record_is_an_in_toto_statement_about_digests() -> None:
    tree = json.loads(file_of(sample_epoch()))
    assert tree["_type"] == "https://in-toto.io/Statement/v1"
    assert tree["predicateType"] == "urn:repro-image:epoch:1"
    assert [subject["name"] for subject in tree["subject"]] == ["config", "manifest-1"]
    assert tree["subject"][0]["digest"] == {"sha256": digest_of("config")[7:]}
    assert "e0001" not in json.dumps(tree["subject"])


def test_a_record_is_sorted_readable_json() -> None:
    data = file_of(sample_epoch())
    assert data.decode() == readable_json(json.loads(data))


def test_the_bytes_of_a_record_do_not_change_between_versions_of_this_tool() -> None:
    assert sha256_digest(file_of(sample_epoch())) == PINNED


PINNED = "sha256:50b2f42f5178a4680122032473abe195bef33d8c9120a8402dcceb0f718bfa93"


def test_a_ledger_reads_back_as_it_was_written(full: dict[str, bytes]) -> None:
    first, second = parse(full)
    assert first.epoch == sample_epoch()
    assert second.epoch.previous == first.digest == sha256_digest(full["0001/epoch.json"])
    assert [stored.record.added.fingerprint.numeric_class.describe()[-9:] for stored in first.classes] == [
        "4 threads"
    ]
    assert [stored.record.config for stored in first.proofs] == [first.epoch.image.config]
    assert first.path == PATH
    assert len(first.goldens) == 2
    assert (second.classes, second.proofs) == ((), ())


def test_no_file_is_an_empty_ledger() -> None:
    assert parse({}) == ()


@settings(max_examples=60, deadline=None)
@given(
    engine=st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True),
        st.booleans()
        | st.integers(min_value=-(2**63), max_value=2**64 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=20),
        max_size=4,
    ),
    builder=st.dictionaries(
        st.text(max_size=9),
        st.text(max_size=20),
        max_size=3,
    ),
)
def test_every_record_survives_the_round_trip(engine: dict[str, Any], builder: dict[str, str]) -> None:
    engine.pop("dtype", None)
    engine = {f"x_{name}": value for name, value in engine.items()}
    epoch = sample_epoch(first_class=sample_class(**engine), builder=builder)
    found = parse_record(file_of(epoch), Epoch, path=PATH)
    assert found == epoch
    assert [type(value) for value in found.first_class.fingerprint.subject.engine.values()] == [
        type(value) for _, value in sorted(epoch.first_class.fingerprint.subject.engine.items())
    ]


def test_a_seed_of_64_bits_is_written_as_text_and_comes_back_as_a_number() -> None:
    data = file_of(sample_epoch(first_class=sample_class(seed=2**64 - 1)))
    engine = json.loads(data)["predicate"]["first_class"]["fingerprint"]["subject"]["engine"]
    assert engine["seed"] == {"$integer": "18446744073709551615"}
    read = parse_record(data, Epoch, path=PATH)
    assert read.first_class.fingerprint.subject.engine["seed"] == 2**64 - 1


def test_no_byte_of_a_record_can_be_changed_unseen(full: dict[str, bytes]) -> None:
    for path, data in full.items():
        for at in range(0, len(data), 97):
            for bad in (data[at] ^ 0x01, data[at] ^ 0x08, data[at] ^ 0x10, data[at] ^ 0x20):
                changed = {**full, path: data[:at] + bytes([bad]) + data[at + 1 :]}
                with pytest.raises((LedgerError, NewerRecordError)):
                    parse(changed)


def test_no_record_can_be_cut_or_lengthened_unseen(full: dict[str, bytes]) -> None:
    for path, data in full.items():
        for changed in (
            b"",
            data[:1],
            data[: len(data) // 2],
            data[:-1],
            data[:-2],
            data + b"\n",
            data + data,
        ):
            with pytest.raises(LedgerError):
                parse({**full, path: changed})


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (b'"number": 1', b'"number": 1,\n    "number": 1', "the key 'number' stands here a second time"),
        (
            b'"number": 1',
            b'"number": 1,\n    "n\\u0075mber": 1',
            "the key 'number' stands here a second time",
        ),
        (b'"number": 1', b'"number": NaN', "NaN is not allowed"),
        (b'"number": 1', b'"number": -Infinity', "-Infinity is not allowed"),
        (b'"number": 1', b'"number": 1e999', "the number 1e999 is too large"),
        (b'"number": 1', b'"number": ' + b"9" * 5000, "an integer above 2**53 (5000 characters)"),
        (b'"number": 1', b'"number": 9007199254740993', "an integer above 2**53 (16 characters)"),
        (b'"number": 1', b'"number": 01', "not JSON"),
        (b'"number": 1,', b'"number": 1,,', "not JSON"),
        (b'"number": 1', b'"number": ' + b"[" * 100_000 + b"]" * 100_000, "nested deeper than 100"),
        (b'"number": 1,', b'"number": 1,\r', "a carriage return is not allowed"),
        (b'"number": 1', b'"number\xff": 1', "not UTF-8: byte 0xff"),
        (b'"number": 1', b'\xef\xbb\xbf"number": 1', "not JSON"),
        (b'"number": 1', b'"number":  1', "the file was changed: not spelled as it is written"),
    ],
)
def test_a_second_way_to_read_a_record_is_refused_with_its_place(old: bytes, new: bytes, what: str) -> None:
    data = file_of(sample_epoch())
    line = data[: data.index(old)].count(b"\n") + 1
    with pytest.raises(BrokenRecordError, match=re.escape(what)) as caught:
        parse_record(data.replace(old, new, 1), Epoch, path=PATH)
    assert caught.value.exit_code == 6
    assert caught.value.line in (line, line + 1)
    assert caught.value.column is not None
    assert f"{PATH}, line {caught.value.line}, column {caught.value.column}" in str(caught.value)


def test_a_file_that_begins_with_a_byte_order_mark_is_refused_at_its_first_byte() -> None:
    with pytest.raises(BrokenRecordError) as caught:
        parse_record(b"\xef\xbb\xbf" + file_of(sample_epoch()), Epoch, path=PATH)
    assert (caught.value.line, caught.value.column) == (1, 1)


def test_half_of_a_surrogate_pair_is_refused() -> None:
    data = file_of(sample_epoch()).replace(b'"29.1.0"', b'"\\ud800"')
    with pytest.raises(BrokenRecordError, match="surrogate"):
        parse_record(data, Epoch, path=PATH)


def test_a_record_of_a_gigabyte_is_refused_by_its_size() -> None:
    with pytest.raises(BrokenRecordError, match="more than a record can have"):
        parse_record(b" " * (2**22 + 1), Epoch, path=PATH)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.update(predicateType="urn:repro-image:epoch:2"),
        lambda tree: tree["predicate"].update(format=2),
    ],
)
def test_a_newer_record_asks_for_a_newer_tool(change: Callable[[Any], None]) -> None:
    written_by = sample_epoch(tool="9.0\x1b[2J")
    data = resealed(file_of(written_by), change)
    with pytest.raises(NewerRecordError, match=r"written by a newer repro-image \(9\.0\?\?2J\)") as caught:
        parse_record(data, Epoch, path=PATH)
    assert caught.value.exit_code == 3
    assert caught.value.fix == "install a newer repro-image"


def test_a_record_of_an_unknown_kind_asks_for_a_newer_tool() -> None:
    with pytest.raises(NewerRecordError, match="'signature'"):
        parse({**chain(1), "0001/signature-0123456789ab.json": b"{}"})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda p: p.update(number=0), r"`int` >= 1 - at `\$.number`"),
        (lambda p: p.update(tag="e0002-00000000"), "the tag is 'e0002-00000000'"),
        (lambda p: p.update(recorded_at="yesterday"), r"\$.recorded_at"),
        (lambda p: p.update(surprise=1), "unknown field `surprise`"),
        (lambda p: p.pop("image"), "missing required field `image`"),
        (lambda p: p["inputs"].update(model=digest_of("other")), "input_digest is"),
        (lambda p: p["image"].update(config=digest_of("other")), "about another image"),
        (lambda p: p["first_class"].update(numeric_class=digest_of("other")), "numeric_class is"),
        (
            lambda p: p["first_class"]["fingerprint"]["subject"].update(image=digest_of("other")),
            "the golden is of image",
        ),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(change: Callable[[Any], None], what: str) -> None:
    data = resealed(file_of(sample_epoch()), lambda tree: change(tree["predicate"]))
    with pytest.raises(BrokenRecordError, match=what):
        parse_record(data, Epoch, path=PATH)


def test_a_changed_value_names_both_digests() -> None:
    data = file_of(sample_epoch())
    claimed = json.loads(data)["predicate"]["content"]
    with pytest.raises(BrokenRecordError, match=f"expected content {claimed}, found sha256:"):
        parse_record(data.replace(b'"29.1.0"', b'"29.1.1"'), Epoch, path=PATH)


def test_a_record_of_another_type_is_refused() -> None:
    data = statement_bytes(sample_proof(digest_of("x")), sample_epoch().image)
    with pytest.raises(
        BrokenRecordError, match="'urn:repro-image:proof:1' where urn:repro-image:epoch:1 belongs"
    ):
        parse_record(data, Epoch, path=PATH)


@pytest.mark.parametrize("data", [b"[]", b"{}", b"null", b"1", b'"x"', b""])
def test_what_is_no_statement_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenRecordError):
        parse_record(data, Epoch, path=PATH)


def test_a_deleted_epoch_is_named() -> None:
    files = chain(3)
    del files["0002/epoch.json"]
    with pytest.raises(BrokenChainError, match="epoch 2 is missing, but later records are there"):
        parse(files)


def test_epochs_in_another_order_are_named() -> None:
    files = chain(3)
    files["0002/epoch.json"], files["0003/epoch.json"] = files["0003/epoch.json"], files["0002/epoch.json"]
    with pytest.raises(BrokenChainError, match="epoch 3 lies in the folder of epoch 2"):
        parse(files)


def test_an_epoch_that_follows_another_record_breaks_the_chain_with_both_digests() -> None:
    ours, theirs = chain(3), chain(2, builder={"engine": "30.0.0"})
    files = {**ours, "0002/epoch.json": theirs["0002/epoch.json"]}  # two branches added epoch 2
    with pytest.raises(BrokenChainError, match="the chain is broken at epoch 3") as caught:
        parse(files)
    assert sha256_digest(ours["0002/epoch.json"]) in str(caught.value)
    assert sha256_digest(theirs["0002/epoch.json"]) in str(caught.value)
    assert "two branches" in caught.value.fix


def test_the_first_epoch_follows_nothing() -> None:
    with pytest.raises(BrokenChainError):
        parse({"0001/epoch.json": file_of(sample_epoch(1, digest_of("x")))})


def test_an_epoch_of_another_image_is_refused() -> None:
    with pytest.raises(BrokenChainError, match="an epoch of 'vllm-cuda' in the ledger of 'vllm-cpu'"):
        parse(chain(1, image_name="vllm-cuda"))


@pytest.mark.parametrize(
    "path",
    [
        "0001/notes.txt",
        "notes.txt",
        "0001/epoch.json~",
        "1/epoch.json",
        "00001/epoch.json",
        "0001/sub/",
        "0001/.x",
    ],
)
def test_an_unknown_file_in_the_ledger_is_refused(path: str) -> None:
    with pytest.raises(BrokenRecordError, match="does not belong into a ledger"):
        parse({**chain(1), path: b""})


def test_a_class_without_its_epoch_is_refused(full: dict[str, bytes]) -> None:
    with pytest.raises(BrokenChainError, match="epoch 1 is missing"):
        parse({path: data for path, data in full.items() if "class-" in path})


def test_a_class_that_follows_another_epoch_is_refused() -> None:
    files = chain(2)
    record = sample_class_record(sha256_digest(files[epoch_path(1)]), threads=4)
    files[class_path(2, record)] = statement_bytes(record, sample_epoch().image)
    with pytest.raises(BrokenChainError, match="epoch 2"):
        parse(files)


def test_a_class_under_another_name_is_refused(full: dict[str, bytes]) -> None:
    [path] = [path for path in full if "class-" in path]
    full["0001/class-000000000000.json"] = full.pop(path)
    with pytest.raises(BrokenRecordError, match="name is not its class"):
        parse(full)


def test_a_class_that_the_epoch_has_already_is_refused() -> None:
    files = chain(1)
    record = sample_class_record(sha256_digest(files[epoch_path(1)]))
    with pytest.raises(AlreadyRecordedError, match="already records class"):
        check_new_class(parse(files)[0], record)
    files[class_path(1, record)] = statement_bytes(record, sample_epoch().image)
    with pytest.raises(BrokenRecordError, match="already records this class"):
        parse(files)


def test_a_proof_of_another_image_is_refused() -> None:
    files = chain(1)
    proof = sample_proof(sha256_digest(files[epoch_path(1)]), config=digest_of("other"))
    data = statement_bytes(proof, sample_epoch().image)
    with pytest.raises(BrokenRecordError, match="the rebuild came out as"):
        parse({**files, proof_path(1, data): data})


def test_a_proof_under_another_name_is_refused(full: dict[str, bytes]) -> None:
    [path] = [path for path in full if "proof-" in path]
    full["0001/proof-000000000000.json"] = full.pop(path)
    with pytest.raises(BrokenRecordError, match="name is not its digest"):
        parse(full)


def test_more_than_9999_epochs_keep_their_order() -> None:
    assert epoch_path(9999) == "9999/epoch.json"
    assert epoch_path(10_000) == "10000/epoch.json"


def test_an_epoch_is_found_by_number_tag_and_digest() -> None:
    files = chain(2, config=digest_of("second"))
    first, second = epochs = parse(files)
    assert find_number(epochs, 2) is second
    assert find_number(epochs, 0) is find_number(epochs, 3) is None
    assert find_tag(epochs, first.epoch.tag) is first
    assert find_digest(epochs, first.epoch.image.config) is first
    assert find_digest(epochs, second.epoch.image.manifests[0].digest) is second
    assert find_text(epochs, "2") is find_text(epochs, second.digest) is second
    assert find_text(epochs, f"repro-image/vllm-cpu:{first.epoch.tag}") is first
    assert find_text(epochs, "latest") is None
    assert find_epoch(epochs, parse_reference("repro-image/vllm-cpu")) is None
    with pytest.raises(InvalidReferenceError):
        find_text(epochs, "../x")


def test_a_digest_that_two_epochs_share_is_the_newest() -> None:
    epochs = parse(chain(3))
    assert find_digest(epochs, digest_of("config")) is epochs[2]


def test_a_golden_is_found_by_its_class(full: dict[str, bytes]) -> None:
    first = parse(full)[0]
    added = first.classes[0].record.added
    assert first.golden_of(added.numeric_class) == added
    assert first.golden_of(digest_of("other")) is None


def test_a_clock_that_goes_back_is_a_warning_and_not_an_error() -> None:
    [warning] = clock_warnings(parse(chain(2, recorded_at="2026-11-20T00:00:00Z")))
    assert warning.startswith("epoch 2 is dated 2026-11-20T00:00:00Z, before an earlier epoch")


def test_a_clock_in_1970_is_a_warning_and_not_an_error() -> None:
    [warning] = clock_warnings(parse(chain(1, recorded_at="1970-01-01T00:00:07Z")))
    assert "before this tool existed" in warning
    assert clock_warnings(parse(chain(2))) == ()


def test_a_ledger_that_lost_an_epoch_somebody_has_seen_is_refused() -> None:
    epochs = parse(chain(3))
    check_contains(epochs, epochs[1].digest, folder=FOLDER)
    with pytest.raises(MissingRecordError, match="older than what was seen") as caught:
        check_contains(epochs[:2], epochs[2].digest, folder=FOLDER)
    assert caught.value.exit_code == 6


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(min_value=-(2**53), max_value=2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.text(max_size=5),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_the_fast_form_is_the_readable_form_and_reads_back(value: Any) -> None:
    data = readable_form(value)
    assert data.decode() == readable_json(value)
    assert parse_strict(data) == value


@given(st.binary(max_size=60) | st.text('[]{}":,0123456789.eE-naNInfity\\u \n', max_size=60).map(str.encode))
def test_any_bytes_are_a_value_or_a_refusal(data: bytes) -> None:
    with suppress(StrictJsonError):
        readable_form(parse_strict(data))


def test_records_are_read_in_the_same_form_whatever_their_type(full: dict[str, bytes]) -> None:
    first = parse(full)[0]
    for kind, stored in ((ClassRecord, first.classes[0]), (ProofRecord, first.proofs[0])):
        data = full[stored.path.removeprefix(f"{FOLDER}/")]
        assert stored.digest == sha256_digest(data)
        assert statement_bytes(stored.record, first.epoch.image) == data
        assert isinstance(stored.record, kind)
    assert msgspec.structs.asdict(first)["path"] == PATH


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            BrokenRecordError("not JSON", path="a.json", line=3, column=5),
            "not JSON\n  where: a.json, line 3, column 5\n  fix:   restore it from git, such as"
            " `git checkout -- a.json`; the ledger's files are never edited",
        ),
        (
            BrokenChainError("epoch 2 is missing", path="a.json"),
            "epoch 2 is missing\n  where: a.json\n  fix:   restore the ledger from git;"
            " where two branches added the same number, keep one of them",
        ),
        (
            MissingRecordError("sha256:1", path="locks"),
            "no epoch has the digest sha256:1: this ledger is older than what was seen, or another one\n"
            "  where: locks\n  fix:   fetch the ledger's newest state from git;"
            " a published epoch is never taken back",
        ),
        (
            NewerRecordError("format 2, known is 1", path="a.json", tool="2.0"),
            "written by a newer repro-image (2.0): format 2, known is 1\n  where: a.json\n"
            "  fix:   install a newer repro-image",
        ),
        (
            AlreadyRecordedError("the record is already there", path="a.json"),
            "the record is already there\n  where: a.json\n"
            "  fix:   nothing is left to do: records are never replaced",
        ),
        (
            LedgerDiskError("the disk is full", path="a.json", fix="make room"),
            "the disk is full\n  where: a.json\n  fix:   make room",
        ),
        (
            LedgerBusyError("locks", holder="process 7 on node", timeout_s=30),
            "another process is writing here for more than 30 s: process 7 on node\n  where: locks\n"
            "  fix:   wait for it or end it, then run it again",
        ),
    ],
)
def test_each_error_says_what_where_and_how_to_fix_it(error: ReproImageError, message: str) -> None:
    assert str(error) == message


@pytest.mark.parametrize("bad", ["\\u12", "\\O"])
def test_a_key_that_is_no_json_is_told_with_its_place(bad: str) -> None:
    with pytest.raises(StrictJsonError) as caught:
        parse_strict(f'{{\n "{bad}RCH": 1\n}}\n'.encode())
    assert caught.value.what.startswith("not JSON: ")
    assert caught.value.line == 2
