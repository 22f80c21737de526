"""What a recording says of itself: the noise floor from a reordered run, and the negative control."""

import pytest

from repro_image.core.controls import (
    control_part,
    exact_engine,
    negative_control,
    noise_floor,
    reordered_engine,
    reordered_request,
    replay_only,
    replayed_part,
    rounding,
)
from repro_image.core.golden import Golden, expected_ids, wrong_shape
from tests.unit.made_goldens import change, make_golden, other_bits, other_token, with_batch


def test_a_reordered_run_asks_the_same_prompts_all_at_once() -> None:
    request = make_golden().request
    reordered = reordered_request(request)
    assert expected_ids(reordered) == expected_ids(request)
    assert all(lane.together for lane in reordered.lanes)
    assert reordered_engine({"max_num_seqs": 1, "seed": 0}) == {"max_num_seqs": 8, "seed": 0}


def test_a_run_whose_order_changes_nothing_has_a_floor_of_zero() -> None:
    golden = make_golden()
    floor = noise_floor(golden, golden)
    assert (floor.flip_rate, floor.median_nats, floor.p99_nats) == (0.0, 0.0, 0.0)
    assert floor.tokens == golden.token_count == 40


def test_the_floor_counts_generated_tokens_up_to_where_the_answers_part() -> None:
    golden = make_golden()
    replayed = next(c.id for c in golden.completions if c.lane == "replay")
    assert noise_floor(golden, change(golden, {replayed: other_bits(0)})) == noise_floor(golden, golden)
    bits = noise_floor(golden, change(golden, {"greedy/1": other_bits(3)}))
    assert bits.flip_rate == 0
    assert 0 < bits.p99_nats < 0.001
    # Token 2 of 8 flips: three tokens of that prompt count, two of them with odds of the same past.
    flip = noise_floor(golden, change(golden, {"greedy/1": other_token(2)}))
    assert flip.tokens == 40 - 8 + 3
    assert flip.flip_rate == 1 / flip.tokens


def replayed(golden: Golden) -> list[str]:
    return [completion.id for completion in golden.completions if completion.lane == "replay"]


def test_the_exact_run_asks_for_replays_alone_in_float32() -> None:
    part = replayed_part(with_batch(make_golden(), batch_invariant=True))
    assert part is not None
    assert wrong_shape(part.request, part.completions) is None
    assert "batch" not in {lane.name for lane in part.request.lanes}
    asked = replay_only(part.request)
    assert expected_ids(asked) == expected_ids(part.request)
    assert {prompt.sampling.max_tokens for lane in asked.lanes for prompt in lane.prompts} == {1}
    engine = exact_engine({"dtype": "bfloat16", "kv_cache_dtype": "fp8", "max_num_seqs": 1})
    assert engine == {"dtype": "float32", "kv_cache_dtype": "auto", "max_num_seqs": 8}


def test_a_golden_without_replay_or_of_float32_has_no_exact_run() -> None:
    assert replayed_part(control_part(make_golden())) is None
    assert exact_engine({"dtype": "float32"}) is None


def test_rounding_is_what_the_replayed_tokens_say_and_no_other() -> None:
    golden = make_golden()
    first, second, *_ = replayed(golden)
    exact = change(golden, {"greedy/0": other_token(0), first: other_bits(3), second: other_bits(1, 0.5)})
    found = rounding(golden, exact)
    assert found is not None
    assert (found.tokens, found.flip_rate, found.median_nats) == (40, 0.0, 0.0)
    assert found.p99_nats == pytest.approx(0.5 - 0.39 * (0.5 - 0.0009765625))
    half = rounding(golden, change(golden, {name: other_bits(3, 0.25) for name in replayed(golden)}))
    assert half is not None
    assert half.p99_nats == 0.25


def test_odds_that_are_no_number_are_no_yardstick() -> None:
    golden = make_golden()
    assert rounding(golden, change(golden, {replayed(golden)[0]: other_bits(3, float("nan"))})) is None


def test_the_control_asks_the_first_prompts_of_the_first_lane() -> None:
    golden = make_golden()
    part = control_part(golden)
    assert [lane.name for lane in part.request.lanes] == ["greedy"]
    assert wrong_shape(part.request, part.completions) is None
    assert 0 < len(part.completions) <= 4


@pytest.mark.parametrize(("is_changed", "found_by"), [(True, "H3"), (False, None)])
def test_the_control_is_found_by_the_answers_alone_or_not_at_all(
    is_changed: bool, found_by: str | None
) -> None:
    part = control_part(make_golden())
    changed = change(part, {"greedy/1": other_bits(3)}) if is_changed else part
    # Checksums of the weights would give it away: they must not count.
    control = negative_control(part, changed)
    assert (control and control.found_by) == found_by
