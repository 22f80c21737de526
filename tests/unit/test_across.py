"""Two numeric classes judged by replay and noise floor: match, drift, mismatch, or nothing to judge by."""

import random
from pathlib import Path

import msgspec
import pytest
import zstandard
from msgspec.structs import replace

from repro_image.core.across import judge_across
from repro_image.core.classes import apart
from repro_image.core.comparison import ClassDifferences, Comparison, Reason, Verdict, compare_across
from repro_image.core.controls import rounding
from repro_image.core.epoch import NoiseFloor, Rounding
from repro_image.core.golden import Completion, Golden, pack_ids, unpack_floats, unpack_ids
from repro_image.core.golden_file import parse_golden
from tests.ledger_samples import sample_class
from tests.unit.made_goldens import TOKENS, change, make_golden, other_bits, other_token, pack_floats

FLOOR = NoiseFloor(flip_rate=0.01, median_nats=0.001, p99_nats=0.2, tokens=400)
ISA: ClassDifferences = (("capability", "AVX512", "AVX2"),)
REPLAYED = tuple(c.id for c in make_golden().completions if c.lane == "replay")


def judged(expected: Golden, found: Golden, floor: NoiseFloor | None = FLOOR) -> Comparison:
    return compare_across(expected, found, floor=floor, differences=ISA)


def flipped(*positions: int, margin: float = 0.25) -> object:
    """Return a change: the two likeliest tokens swapped at these positions, ``margin`` nats apart now."""

    def changed(completion: Completion) -> Completion:
        ids, odds = list(unpack_ids(completion.topk_ids)), list(unpack_floats(completion.logprobs))
        for n in positions:
            ids[2 * n], ids[2 * n + 1] = ids[2 * n + 1], ids[2 * n]
            odds[3 * n + 1 : 3 * n + 3] = [-0.25, -0.25 - margin]
        return replace(completion, topk_ids=pack_ids(ids), logprobs=pack_floats(odds))

    return changed


def close_calls() -> Golden:
    """Return a golden whose two likeliest tokens are everywhere 0.125 nats apart."""
    odds = pack_floats([value for _ in range(TOKENS) for value in (-0.25, -0.25, -0.375)])
    golden = make_golden()
    return change(golden, {c.id: lambda c: replace(c, logprobs=odds) for c in golden.completions})


def moved(golden: Golden, nats: float) -> Golden:
    def changed(completion: Completion) -> Completion:
        return replace(
            completion, logprobs=pack_floats([v - nats for v in unpack_floats(completion.logprobs)])
        )

    return change(golden, {completion.id: changed for completion in golden.completions})


def test_equal_answers_of_another_class_are_a_match_that_says_so() -> None:
    comparison = judged(make_golden(), make_golden())
    assert (comparison.verdict, comparison.exit_code) == (Verdict.MATCH, 0)
    assert comparison.detail.endswith("and 40 tokens, in another numeric class")
    assert [item.field for item in comparison.class_differences] == ["capability"]
    assert comparison.across is None


def test_odds_within_the_noise_floor_are_drift() -> None:
    comparison = judged(close_calls(), moved(close_calls(), 0.0029))
    assert (comparison.verdict, comparison.reason, comparison.exit_code) == (Verdict.DRIFT, None, 12)
    across = comparison.across
    assert across is not None
    assert (across.tokens, across.flips.events, across.floor_flips.events) == (40, 0, 4)
    assert across.median_nats == pytest.approx(0.0029, rel=1e-4)
    assert across.median_limit_nats == pytest.approx(0.003)
    assert across.largest_margin_nats is None


def test_odds_that_move_by_more_than_three_floors_are_a_mismatch_although_no_token_flips() -> None:
    comparison = judged(close_calls(), moved(close_calls(), 0.0031))
    assert (comparison.verdict, comparison.reason) == (Verdict.MISMATCH, Reason.NUMERIC)
    assert comparison.detail == "log-probabilities move more than the noise floor explains"


def test_what_rounding_puts_between_two_classes_is_drift_and_what_lies_beyond_is_not() -> None:
    rounding = Rounding(flip_rate=0.05, median_nats=0.01, p99_nats=0.9, tokens=400)
    floor = replace(FLOOR, rounding=rounding)
    near = judged(close_calls(), moved(close_calls(), 0.0174), floor)
    assert near.verdict is Verdict.DRIFT
    assert near.across is not None
    assert near.across.median_limit_nats == pytest.approx(0.0175)
    assert (near.across.tau_nats, near.across.floor_flips.events) == (0.9, 20)
    assert judged(close_calls(), moved(close_calls(), 0.0176), floor).verdict is Verdict.MISMATCH


def test_of_two_classes_the_one_that_knows_its_rounding_judges() -> None:
    rounding = Rounding(flip_rate=0.05, median_nats=0.01, p99_nats=0.9, tokens=400)
    near, far = close_calls(), moved(close_calls(), 0.01)
    early = replace(sample_class(golden=near), noise_floor=FLOOR)
    later = replace(sample_class(golden=far, threads=4), noise_floor=replace(FLOOR, rounding=rounding))
    assert apart(early, near, later, far).verdict == "drift"
    assert apart(early, near, replace(later, noise_floor=FLOOR), far).verdict == "mismatch"


def recorded(name: str) -> Golden:
    """Return answers of a real machine: tests/data/classes/README.md."""
    data = (Path(__file__).parents[1] / f"data/classes/{name}.golden.zst").read_bytes()
    return parse_golden(zstandard.ZstdDecompressor().decompress(data), path=name)


@pytest.mark.parametrize(("first", "second"), [("intel", "amd"), ("amd", "intel")])
def test_two_makers_of_processors_drift_apart_and_weights_of_int8_are_told_from_both(
    first: str, second: str
) -> None:
    expected, exact = recorded(first), rounding(recorded(first), recorded("amd-float32"))
    assert exact is not None
    order = NoiseFloor(
        flip_rate=0.0099, median_nats=0.00253, p99_nats=0.128, tokens=708
    )  # as epoch 1 recorded
    without = judge_across(expected, recorded(second), order)
    assert without is not None
    assert without.told() == "log-probabilities move more than the noise floor explains"
    honest = judge_across(expected, recorded(second), replace(order, rounding=exact))
    rounded = judge_across(expected, recorded("amd-int8"), replace(order, rounding=exact))
    assert honest is not None
    assert rounded is not None
    assert (honest.tokens, honest.is_drift, rounded.is_drift) == (576, True, False)
    assert honest.median_nats < 0.7 * honest.median_limit_nats
    assert rounded.median_nats > 1.25 * rounded.median_limit_nats


def test_a_floor_of_zero_still_allows_what_moves_no_likely_logit() -> None:
    still = replace(FLOOR, flip_rate=0.0, median_nats=0.0, p99_nats=0.0)
    assert judged(close_calls(), moved(close_calls(), 0.0012), still).verdict is Verdict.DRIFT
    assert judged(close_calls(), moved(close_calls(), 0.0013), still).verdict is Verdict.MISMATCH


def test_other_generated_tokens_alone_do_not_count() -> None:
    found = change(moved(close_calls(), 0.001), {"greedy/0": other_token(0), "sampled/1": other_token(1)})
    comparison = judged(close_calls(), found)
    assert comparison.verdict is Verdict.DRIFT
    assert comparison.first is not None
    assert comparison.first.id == "greedy/0", "told all the same"


def test_a_flip_of_a_near_tie_is_drift_and_a_flip_of_a_sure_token_is_not() -> None:
    tie = change(close_calls(), {REPLAYED[0]: flipped(3, margin=0.5)})  # type: ignore[dict-item]
    assert judged(close_calls(), tie).verdict is Verdict.DRIFT
    sure = change(close_calls(), {REPLAYED[0]: flipped(3, margin=0.625)})  # type: ignore[dict-item]
    comparison = judged(close_calls(), sure)
    assert (comparison.verdict, comparison.reason) == (Verdict.MISMATCH, Reason.NUMERIC)
    assert comparison.detail == "tokens flip that were no near tie"
    assert comparison.across is not None
    assert (comparison.across.tau_nats, comparison.across.largest_margin_nats) == (0.5, 0.625)


def test_what_counts_as_a_tie_is_the_floors_99th_percentile_where_that_is_larger() -> None:
    across = judge_across(close_calls(), close_calls(), replace(FLOOR, p99_nats=0.75))
    assert across is not None
    assert across.tau_nats == 0.75


@pytest.mark.parametrize(("flips", "verdict"), [(4, Verdict.DRIFT), (6, Verdict.MISMATCH)])
def test_flips_are_too_many_when_their_interval_lies_above_that_of_the_floor(
    flips: int, verdict: Verdict
) -> None:
    # 4 of 400 has the interval 0.3 % to 2.5 %; 4 of 40 begins at 2.8 %, 3 of 40 at 1.6 %.
    floor = replace(FLOOR, flip_rate=0.02)  # 8 of 400: up to 3.9 %
    found = change(close_calls(), {REPLAYED[0]: flipped(*range(flips), margin=0.125)})  # type: ignore[dict-item]
    comparison = judged(close_calls(), found, floor)
    assert comparison.verdict is verdict
    assert comparison.across is not None
    assert comparison.across.flips_hold is (verdict is Verdict.DRIFT)


def test_fewer_flips_than_by_order_are_no_mismatch() -> None:
    floor = replace(FLOOR, flip_rate=0.5)
    assert judged(close_calls(), moved(close_calls(), 0.001), floor).verdict is Verdict.DRIFT


def test_other_weights_are_a_mismatch_across_classes_too() -> None:
    found = replace(moved(close_calls(), 0.0001), weights={"embed": "aa", "layers.0": "xx"})
    comparison = judged(close_calls(), found)
    assert (comparison.verdict, comparison.reason) == (Verdict.MISMATCH, Reason.WEIGHTS)


def test_tensors_of_other_names_say_nothing_across_a_parallel_layout() -> None:
    found = replace(moved(close_calls(), 0.0001), weights={"rank0.embed": "cc", "rank1.embed": "dd"})
    comparison = judged(close_calls(), found)
    assert (comparison.verdict, comparison.weights) == (Verdict.DRIFT, None)
    assert comparison.detail.endswith("; weights are not compared, for no tensor has the same name")


def test_without_a_noise_floor_or_a_replay_classes_are_not_comparable_and_the_reason_is_told() -> None:
    golden = close_calls()
    comparison = judged(golden, moved(golden, 0.001), None)
    assert (comparison.exit_code, comparison.reason) == (11, Reason.CLASS)
    assert "no noise floor" in comparison.detail
    lanes = golden.request.lanes[:2]
    short = replace(
        golden,
        request=replace(golden.request, lanes=lanes),
        completions=tuple(c for c in golden.completions if c.lane != "replay"),
    )
    comparison = judged(short, moved(short, 0.001))
    assert (comparison.exit_code, comparison.reason) == (11, Reason.CLASS)
    assert "replays nothing" in comparison.detail


def test_another_tokenizer_or_a_log_probability_that_is_no_number_comes_first() -> None:
    golden = close_calls()
    other = change(golden, {"greedy/1": lambda c: replace(c, tokenized=pack_ids([9]))})
    assert judged(golden, other).reason is Reason.TOKENIZER
    infinite = change(golden, {"greedy/1": lambda c: replace(c, logprobs=pack_floats([float("inf")] * 24))})
    assert judged(golden, infinite).reason is Reason.UNSTABLE


def test_the_tests_are_part_of_the_json_document_with_all_their_numbers() -> None:
    told = msgspec.to_builtins(judged(close_calls(), moved(close_calls(), 0.0031)).across)
    assert (told["margins_hold"], told["flips_hold"], told["median_holds"]) == (True, True, False)
    assert told["tau_nats"] == 0.5


def test_an_honest_class_with_the_floors_own_flip_rate_passes_almost_always() -> None:
    rng, rate, passed = random.Random(7), 0.0084, 0  # noqa: S311 - repeats
    from repro_image.core.differences import rate_of

    for _ in range(200):
        floor, found = (rate_of(sum(rng.random() < rate for _ in range(n)), n) for n in (715, 576))
        passed += found.low <= floor.high
    assert passed >= 198


def test_the_change_of_bits_alone_is_drift() -> None:
    found = change(close_calls(), {name: other_bits(2, nats=1e-5) for name in REPLAYED})
    assert judged(close_calls(), found).verdict is Verdict.DRIFT
