import math
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.core.golden import (
    LEVELS,
    Completion,
    Golden,
    GoldenRequest,
    Lane,
    Levels,
    Message,
    Prompt,
    Sampling,
    expected_ids,
    has_nonfinite,
    levels,
    pack_ids,
    unpack_floats,
    unpack_ids,
    wrong_shape,
)

REQUEST = GoldenRequest(
    suite="tiny",
    root_seed=42,
    top_k=2,
    lanes=(
        Lane(
            name="greedy",
            prompts=(
                Prompt(id="greedy/000", text="one", sampling=Sampling(max_tokens=2)),
                Prompt(id="greedy/001", text="two", sampling=Sampling(max_tokens=1)),
            ),
        ),
        Lane(name="replay", replay_of=("greedy",)),
    ),
)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def completion(name: str, tokens: int) -> Completion:
    lane = name.partition("/")[0]
    return Completion(
        id=name,
        lane=lane,
        tokenized=pack_ids([11, 12]) if lane == "greedy" else b"",
        prompt_ids=pack_ids([11, 12]),
        output_ids=pack_ids(list(range(tokens))),
        topk_ids=pack_ids([5, 6] * tokens),
        logprobs=floats(*[-0.5, -0.5, -1.5] * tokens),
        finish_reason="length",
    )


@pytest.fixture
def golden() -> Golden:
    return Golden(
        request=REQUEST,
        completions=(
            completion("greedy/000", 2),
            completion("greedy/001", 1),
            completion("replay/greedy/000", 2),
            completion("replay/greedy/001", 1),
        ),
        vocabulary={"5": "five", "6": "\n"},
        weights={"a": "00"},
        canaries={"python.random": "00"},
    )


def with_first(golden: Golden, **changes: object) -> Golden:
    first, *rest = golden.completions
    return msgspec.structs.replace(golden, completions=(msgspec.structs.replace(first, **changes), *rest))


@given(st.lists(st.integers(min_value=-(2**31), max_value=2**31 - 1)))
def test_ids_come_back_as_they_were_packed(ids: list[int]) -> None:
    assert unpack_ids(pack_ids(ids)) == tuple(ids)
    assert pack_ids(ids) == struct.pack(f"<{len(ids)}i", *ids)


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_floats_are_read_as_little_endian_float32(values: list[float]) -> None:
    assert unpack_floats(floats(*values)) == tuple(values)


def test_replayed_tokens_are_not_counted(golden: Golden) -> None:
    assert golden.token_count == 3


def test_a_replay_names_its_source(golden: Golden) -> None:
    assert expected_ids(REQUEST) == [c.id for c in golden.completions]


@pytest.mark.parametrize(
    ("field", "value", "level"),
    [
        ("tokenized", pack_ids([11, 13]), "H0"),
        ("output_ids", pack_ids([0, 2]), "H1"),
        ("topk_ids", pack_ids([5, 6, 5, 7]), "H2"),
        ("logprobs", floats(-0.5, -0.5, -1.5, -0.5, -0.5, -1.5000001), "H3"),
    ],
)
def test_each_level_sees_its_own_part_alone(golden: Golden, field: str, value: bytes, level: str) -> None:
    before, after = levels(golden), levels(with_first(golden, **{field: value}))
    assert [name for name in LEVELS if getattr(before, name) != getattr(after, name)] == [level]


def test_tokens_that_move_to_another_completion_change_the_level(golden: Golden) -> None:
    first, second, *rest = golden.completions
    moved = msgspec.structs.replace(
        golden,
        completions=(
            msgspec.structs.replace(first, output_ids=first.output_ids[:4]),
            msgspec.structs.replace(second, output_ids=first.output_ids[4:] + second.output_ids),
            *rest,
        ),
    )
    assert levels(moved).H1 != levels(golden).H1


def test_the_levels_of_a_golden_are_pinned(golden: Golden) -> None:
    """Epochs hold these digests: another value here makes every ledger wrong."""
    assert levels(golden) == Levels(
        H0="sha256:ecc86cea9c478a20cbbb3eebd2fae763c18c8bf8fb8d36e3679ab3e4ed45d881",
        H1="sha256:69024d5ab12d7560650c04a91df74e3ba8156da85d408044a768f0250561a4dd",
        H2="sha256:4913596dce8f4c19a37ba4d38ea08c3d256bb3eb829c8ac290866e662086eb1e",
        H3="sha256:4902164362e32b4c7d3eb24401729cfd91c742c3fc5f22fc5a04dae4f616b5a2",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": "greedy/007"}, "4 completions where 4 were asked, or in another order"),
        ({"tokenized": b"123"}, "greedy/000: an id array is truncated"),
        ({"lane": "replay"}, "4 completions where 4 were asked, or in another order"),
        ({"prompt_ids": pack_ids([11, -12])}, "greedy/000: an id is below 0"),
        ({"output_ids": b""}, "greedy/000: 0 tokens do not fit its alternatives"),
        ({"topk_ids": pack_ids([1, 2, 3])}, "greedy/000: 2 tokens do not fit its alternatives"),
        ({"logprobs": floats(-1.0)}, "greedy/000: 2 tokens do not fit its log-probabilities"),
    ],
)
def test_completions_that_do_not_fit_the_request_are_named(
    golden: Golden, changes: dict[str, object], words: str
) -> None:
    broken = with_first(golden, **changes)
    assert wrong_shape(REQUEST, broken.completions) == words


def test_a_missing_completion_is_found(golden: Golden) -> None:
    assert wrong_shape(REQUEST, golden.completions[:-1]) == (
        "3 completions where 4 were asked, or in another order"
    )
    assert wrong_shape(REQUEST, golden.completions) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_found(golden: Golden, value: float) -> None:
    assert not has_nonfinite(golden.completions)
    assert has_nonfinite(with_first(golden, logprobs=floats(-1, -1, -1, -1, value, -1)).completions)


def test_the_digest_of_a_request_sees_every_setting() -> None:
    first = REQUEST.lanes[0].prompts[0]
    digests = {REQUEST.digest}
    for sampling in (
        Sampling(max_tokens=3),
        Sampling(max_tokens=2, temperature=0.5),
        Sampling(max_tokens=2, top_p=0.5),
        Sampling(max_tokens=2, seed=1),
    ):
        changed = msgspec.structs.replace(first, sampling=sampling)
        lane = Lane(name="greedy", prompts=(changed, REQUEST.lanes[0].prompts[1]))
        digests.add(msgspec.structs.replace(REQUEST, lanes=(lane, REQUEST.lanes[1])).digest)
    digests.add(msgspec.structs.replace(REQUEST, top_k=3).digest)
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": "a", "chat": (Message(role="user", content="a"),)}, "a text or a chat, not both"),
        ({}, "needs a text, a chat or token ids"),
        ({"chat": ()}, "needs a text, a chat or token ids"),
        ({"token_ids": ()}, "needs a text, a chat or token ids"),
    ],
)
def test_a_prompt_asks_one_thing(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Prompt(id="a", sampling=Sampling(max_tokens=1), **fields)
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert({"id": "a", "sampling": {"max_tokens": 1}, **msgspec.to_builtins(fields)}, Prompt)


@pytest.mark.parametrize(
    ("lanes", "words"),
    [
        ((Lane(name="again", replay_of=("greedy",)),), "lane again must replay earlier lanes"),
        ((REQUEST.lanes[0], Lane(name="again", replay_of=("again",))), "lane again must replay earlier"),
        ((*REQUEST.lanes, Lane(name="again", replay_of=("replay",))), "lane again must replay earlier lanes"),
        ((REQUEST.lanes[0], replace(REQUEST.lanes[0], replay_of=("greedy",))), "lane greedy must replay"),
        (
            (REQUEST.lanes[0], Lane(name="again", replay_of=("greedy",), batch_invariant=True)),
            "lane again must replay earlier lanes of the same engine",
        ),
        (
            (replace(REQUEST.lanes[0], batch_invariant=True), Lane(name="b")),
            "batch-invariant lanes come last",
        ),
        ((REQUEST.lanes[0], REQUEST.lanes[0]), "have the same name"),
        ((REQUEST.lanes[0], replace(REQUEST.lanes[0], name="other")), "have the same name"),
    ],
)
def test_lanes_that_cannot_be_told_apart_or_replayed_are_refused(lanes: tuple[Lane, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GoldenRequest(suite="any", root_seed=1, lanes=lanes)
