"""core/golden_file.py, core/answer_columns.py, core/bits.py: the stored form of a golden."""

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.core import golden_file
from repro_image.core.answer_columns import Answer, AnswerColumns, packed_answers
from repro_image.core.bits import Bits, Bytes, packed_bits, packed_varints
from repro_image.core.golden import (
    Completion,
    Golden,
    GoldenRequest,
    Lane,
    Message,
    Prompt,
    Sampling,
    expected_completions,
    pack_ids,
)
from repro_image.core.golden_file import golden_bytes, golden_digest, parse_golden
from repro_image.errors import InvalidFileError
from tests.unit.made_goldens import make_golden

IDS = st.integers(min_value=0, max_value=2**31 - 1)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=12)


def packed(ids: list[int], count: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(ids), min_size=count, max_size=count).map(pack_ids)


@st.composite
def goldens(draw: st.DrawFn) -> Golden:
    """Two prompts, their replay, and whatever else a golden may hold."""
    top_k = draw(st.integers(min_value=1, max_value=6))
    ids = draw(st.lists(IDS, min_size=1, max_size=9, unique=True))
    kinds: list[dict[str, Any]] = [
        {"text": draw(TEXT)},
        {"chat": (Message(role="user", content=draw(TEXT)),), "token_ids": tuple(ids)},
    ]
    prompts = tuple(
        Prompt(id=f"a/{n}", sampling=Sampling(max_tokens=3), **kind) for n, kind in enumerate(kinds)
    )
    lanes = (Lane(name="a", prompts=prompts), Lane(name="again", replay_of=("a",)))
    request = GoldenRequest(suite="any", root_seed=draw(IDS), top_k=top_k, lanes=lanes)
    completions: list[Completion] = []
    for name, lane in expected_completions(request):
        is_copy = draw(st.booleans())
        if completions and is_copy:
            completions.append(replace(completions[0], id=name, lane=lane))
            continue
        tokens = draw(st.integers(min_value=1, max_value=4))
        array = st.lists(st.sampled_from(ids), max_size=4).map(pack_ids)
        odds = draw(st.lists(FLOATS, min_size=tokens * (1 + top_k), max_size=tokens * (1 + top_k)))
        completions.append(
            Completion(
                id=name,
                lane=lane,
                tokenized=draw(array),
                prompt_ids=draw(array),
                output_ids=draw(packed(ids, tokens)),
                topk_ids=draw(packed(ids, tokens * top_k)),
                logprobs=struct.pack(f"<{len(odds)}f", *odds),
                finish_reason=draw(TEXT),
            )
        )
    return Golden(
        request=request,
        completions=tuple(completions),
        vocabulary={str(number % 10**9): draw(TEXT) for number in ids[:5]},
        weights=draw(st.dictionaries(TEXT, TEXT | st.sampled_from(["00ff", "0", "AB", ""]))),
        canaries=draw(st.dictionaries(TEXT, TEXT, max_size=2)),
    )


@given(goldens())
@settings(max_examples=200)
def test_any_golden_comes_back_bit_by_bit(golden: Golden) -> None:
    data = golden_bytes(golden)
    assert parse_golden(data, path="g") == golden
    assert golden_bytes(parse_golden(data, path="g")) == data


def rows(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def read_back(logprobs: bytes, *, chosen: int, top_k: int = 3) -> tuple[dict[str, bytes], bytes]:
    """Pack one token with ids 0, 1, 2 ... as its alternatives; return the columns and what comes back."""
    answer = Answer(output=(chosen,), alternatives=tuple(range(top_k)), logprobs=logprobs)
    columns = packed_answers([(answer, False)], top_k=top_k, id_bits=4)
    assert AnswerColumns(columns, top_k=top_k, id_bits=4).read(1, known=None) == answer
    return columns, logprobs


@given(
    first=st.floats(min_value=-20, max_value=0, width=32),
    steps=st.lists(st.integers(min_value=0, max_value=2000), min_size=3, max_size=3),
    exponent=st.integers(min_value=0, max_value=13),
)
def test_log_probabilities_of_logits_on_a_grid_are_packed_as_steps(
    first: float, steps: list[int], exponent: int
) -> None:
    below = [first - sum(steps[: n + 1]) / 2**exponent for n in range(3)]
    chosen = below[-1]
    columns, _ = read_back(rows(chosen, first, *below[:2]), chosen=9)
    assert columns["whole"] == b""
    assert columns["first"] == rows(first)


def test_log_probabilities_on_no_grid_keep_their_bytes() -> None:
    columns, _ = read_back(rows(-1.2345678, -0.1, -1.2345678, -3.3), chosen=1)
    assert columns["whole"] == rows(-1.2345678, -3.3)


def test_a_chosen_token_that_has_other_bits_than_its_alternative_keeps_them() -> None:
    columns, _ = read_back(rows(-1.0000001, -0.5, -1.0, -1.5), chosen=1)
    assert columns["whole"] == rows(-1.0, -1.5, -1.0000001)


@pytest.mark.parametrize(
    "bits", [(0x80000000,) * 4, (0, 0x80000000, 0, 0x80000000), (1, 0, 1, 0x80000001), (0xFF7FFFFF,) * 4]
)
def test_odd_numbers_keep_their_bits(bits: tuple[int, ...]) -> None:
    read_back(struct.pack("<4I", *bits), chosen=0)


def test_equal_answers_and_replayed_outputs_are_stored_once() -> None:
    golden = make_golden()
    header = json.loads(golden_bytes(golden).partition(b"\n")[0])
    assert header["completions"]["same_answer_as"] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    sizes = {column["name"]: column["size_bytes"] for column in header["columns"]}
    assert sizes["first"] == 5 * 8 * 4


def test_the_file_says_what_is_in_it() -> None:
    data = golden_bytes(make_golden())
    line, _, rest = data.partition(b"\n")
    header = json.loads(line)
    assert header["format"] == 2
    assert sum(column["size_bytes"] for column in header["columns"]) == len(rest)
    assert all(column["codec"] for column in header["columns"])
    assert set(header["levels"]) == {"H0", "H1", "H2", "H3"}


def test_the_stored_form_is_pinned() -> None:
    """Epochs hold this digest: another one here makes every ledger wrong."""
    assert (
        golden_digest(make_golden())
        == "sha256:4f772ce692d286e4117b24a496baae58b34edaa7a04583e082155094dc149a2d"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_finite_number_is_not_stored(value: float) -> None:
    golden = make_golden()
    first = golden.completions[0]
    broken = replace(first, logprobs=rows(value) + first.logprobs[4:])
    with pytest.raises(ValueError, match="not a finite number"):
        golden_bytes(replace(golden, completions=(broken, *golden.completions[1:])))


def test_completions_that_do_not_fit_the_request_are_not_stored() -> None:
    golden = make_golden()
    with pytest.raises(ValueError, match="9 completions where 10 were asked"):
        golden_bytes(replace(golden, completions=golden.completions[1:]))


def refused(data: bytes) -> str:
    with pytest.raises(InvalidFileError, match="not a golden") as caught:
        parse_golden(data, path="locks/x/goldens/g.golden.zst")
    assert (caught.value.exit_code, caught.value.where) == (3, "locks/x/goldens/g.golden.zst")
    return caught.value.what


def test_a_golden_cut_at_any_byte_is_refused() -> None:
    data = golden_bytes(make_golden())
    for size in range(len(data)):
        refused(data[:size])


def test_more_bytes_at_the_end_are_refused() -> None:
    assert "there is more after the last column" in refused(golden_bytes(make_golden()) + b"\0")


def test_a_changed_byte_is_refused_wherever_it_stands() -> None:
    """Also where the digest of the whole file would not be compared: nothing in it goes unread."""
    data = golden_bytes(make_golden())
    same = []
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            same.append(parse_golden(changed, path="g") == make_golden())
        except InvalidFileError:
            continue
    assert not any(same)


@pytest.mark.parametrize("level", ["H0", "H1", "H2", "H3"])
def test_a_digest_that_does_not_fit_its_column_is_refused(level: str) -> None:
    line, _, rest = golden_bytes(make_golden()).partition(b"\n")
    header = json.loads(line)
    header["levels"][level] = f"sha256:{'0' * 64}"
    assert "its parts do not fit each other" in refused(compact(header) + b"\n" + rest)


def compact(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def change_header(path: str, value: Any) -> bytes:
    line, _, rest = golden_bytes(make_golden()).partition(b"\n")
    header = place = json.loads(line)
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name)] if name.isdigit() else place[name]
    place[int(last) if last.isdigit() else last] = value
    return compact(header) + b"\n" + rest


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("format", 1, "Invalid enum value 1 - at `$.format`"),
        ("more", 1, "unknown field `more`"),
        ("completions.tokens.0", 2**31 - 1, "2147483"),
        ("completions.tokens.0", 9, "too short"),
        ("completions.tokens.0", 7, "not"),
        ("completions.tokens.0", 0, "not"),
        ("completions.tokens.0", -1, "Expected `int` >= 0 - at `$.completions.tokens[0]`"),
        ("completions.same_answer_as.0", 9, "out of range"),
        ("completions.same_output_as.0", 9, "out of range"),
        ("completions.tokenized.0", 99, "out of range"),
        ("sequence_lengths.0", 2**31 - 1, "ids, more than"),
        ("sequence_lengths.0", 3000, "too short"),
        ("id_bits.answer", 32, "Expected `int` <= 31"),
        ("id_bits.answer", 31, "out of range"),
        ("columns.0.size_bytes", 2**31 - 1, "too short"),
        ("columns.0.name", "other", "other columns than this version knows"),
        ("columns.0.codec", "other", "its parts do not fit each other"),
        ("columns", [], "other columns than this version knows"),
        ("request.top_k", 3, "not a golden"),
        ("request.top_k", 0, "Expected `int` >= 1"),
        ("canaries", {"a": 1}, "Expected `str`, got `int`"),
    ],
)
def test_a_header_that_claims_something_else_is_refused(path: str, value: Any, words: str) -> None:
    assert words in refused(change_header(path, value))


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"format":2}', b"\xff", b"NaN", b"\n", b"{}\n{}"])
def test_what_is_no_golden_is_refused(data: bytes) -> None:
    refused(data)


def test_a_small_file_cannot_claim_a_large_golden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_file, "_MOST_IDS", 100)
    assert "ids, more than 100" in refused(golden_bytes(make_golden()))


@given(st.lists(st.tuples(IDS, st.integers(min_value=31, max_value=40))))
def test_bits_come_back_as_they_were_packed(numbers: list[tuple[int, int]]) -> None:
    bits = Bits(packed_bits(numbers))
    assert [bits.take(width) for _, width in numbers] == [number for number, _ in numbers]


@given(st.lists(st.integers(min_value=0, max_value=2**56 - 1)))
def test_varints_come_back_as_they_were_packed(numbers: list[int]) -> None:
    reader = Bytes(packed_varints(numbers))
    assert [reader.varint() for _ in numbers] == numbers
    assert reader.is_at_end


def test_a_varint_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        Bytes(b"\x80" * 12).varint()
