"""Margins, the step of the logits, and what a replay says token by token."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.core.golden import Completion, Golden, pack_ids
from repro_image.core.odds import first_difference, float32_ulp, logit_ulp, replay_steps
from tests.unit.made_goldens import TOKENS, TOP_K, change, make_golden, other_bits, pack_floats


def answered(golden: Golden, logits: list[list[float]]) -> Golden:
    """Return ``golden`` with log-probabilities of these logits, rounded as float32 rounds them."""

    def odds(completion: Completion) -> Completion:
        values: list[float] = []
        for row in (logits * TOKENS)[:TOKENS]:
            total = math.log(math.fsum(math.exp(value) for value in (*row, 11.7)))
            values += [row[0] - total, row[0] - total, row[1] - total]
        return replace(completion, logprobs=pack_floats(values))

    return change(golden, {completion.id: odds for completion in golden.completions})


@pytest.mark.parametrize(
    ("logits", "ulp"),
    [
        ([[17.25, 17.125], [18.0, 16.625], [21.5, 19.875]], 2**-3),  # bfloat16 from 16 to 32
        ([[17.25, 17.25], [18.0, 16.625], [17.0, 17.0]], 2**-3),  # ties say nothing
        ([[17.28125, 17.015625], [18.046875, 16.5], [30.0, 29.984375]], 2**-6),  # float16 from 16 to 32
    ],
)
def test_logits_of_16_bits_show_their_step_in_the_answers(logits: list[list[float]], ulp: float) -> None:
    assert logit_ulp(answered(make_golden(), logits)) == ulp


def test_float32_logits_show_no_grid_and_count_in_steps_of_float32() -> None:
    golden = answered(make_golden(), [[17.2834719, 17.1018273], [18.0012347, 16.6274651]])
    assert 2**-30 < logit_ulp(golden) < 2**-20


def test_equal_logits_everywhere_still_have_a_step() -> None:
    assert logit_ulp(answered(make_golden(), [[17.0, 17.0]])) > 0


def test_logits_that_are_no_numbers_say_nothing_of_the_step() -> None:
    golden = make_golden()
    broken = change(golden, {"greedy/0": lambda c: replace(c, logprobs=pack_floats([math.nan] * 3 * TOKENS))})
    assert logit_ulp(broken) == logit_ulp(golden) == 2.0


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=0, max_value=2.0**100))
def test_an_ulp_is_the_step_to_the_next_float32(value: float) -> None:
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    following = struct.unpack("<f", struct.pack("<I", bits + 1))[0]
    assert float32_ulp(value) == following - value


def replayed() -> Completion:
    return next(c for c in make_golden().completions if c.lane == "replay")


def test_an_equal_replay_moves_nothing_and_flips_nothing() -> None:
    steps = list(replay_steps(replayed(), replayed(), top_k=TOP_K))
    assert [(step.nats, step.margin_nats) for step in steps] == [(0.0, None)] * TOKENS


def test_a_flip_has_the_larger_margin_of_both_sides() -> None:
    ours = replayed()
    ids = [n for token in range(TOKENS) for n in (token + 100, token)]  # what was second is first
    odds = [value for _ in range(TOKENS) for value in (-0.5, -0.5, -0.75)]
    theirs = replace(ours, topk_ids=pack_ids(ids), logprobs=pack_floats(odds))
    steps = list(replay_steps(ours, theirs, top_k=TOP_K))
    assert [step.margin_nats for step in steps] == [2.0] * TOKENS
    assert [step.nats for step in steps] == [0.25] * TOKENS


def test_a_likeliest_token_that_is_no_alternative_of_the_other_side_is_at_least_as_far_as_the_last() -> None:
    ours = replayed()
    theirs = replace(ours, topk_ids=pack_ids([900, 901] * TOKENS))
    assert {step.margin_nats for step in replay_steps(ours, theirs, top_k=TOP_K)} == {2.0}


def test_steps_end_with_the_first_token_that_was_fed_otherwise() -> None:
    ours = replayed()
    theirs = other_bits(3)(replace(ours, output_ids=pack_ids([0, 1, 2, 77, 4, 5, 6, 7])))
    steps = list(replay_steps(ours, theirs, top_k=TOP_K))
    assert len(steps) == 4
    assert steps[3].nats is None, "the two odds are of different tokens"


def test_without_alternatives_a_replay_says_nothing() -> None:
    assert list(replay_steps(replayed(), replayed(), top_k=0)) == []


def test_the_first_difference_of_two_lists_may_be_an_end() -> None:
    assert first_difference((1, 2), (1, 2)) is None
    assert first_difference((1, 2), (1, 3)) == 1
    assert first_difference((1, 2), (1, 2, 3)) == 2
