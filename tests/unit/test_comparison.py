import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.core.comparison import (
    EXIT_CODES,
    Reason,
    Verdict,
    compare,
    compare_repeat,
    moved_tag,
    not_comparable_class,
    too_weak,
)
from repro_image.core.differences import Decade
from repro_image.core.golden import Completion, Golden, pack_ids, unpack_ids
from repro_image.core.intervals import clopper_pearson, needed_trials, power, smallest_visible_change
from repro_image.reports.phrases import parting_text
from tests.unit.made_goldens import change, make_golden, other_bits, other_token, pack_floats

EVERY_PROMPT = ("greedy/0", "greedy/1", "greedy/2", "sampled/0", "sampled/1")


@pytest.fixture
def golden() -> Golden:
    return make_golden()


def test_equal_goldens_match(golden: Golden) -> None:
    comparison = compare(golden, make_golden())
    assert (comparison.verdict, comparison.reason, comparison.exit_code) == (Verdict.MATCH, None, 0)
    assert comparison.detail == "every level is equal over 10 prompts and 40 tokens"
    assert [level.equal for level in comparison.levels] == [True] * 4
    assert comparison.first is None


def test_verdicts_have_the_exit_codes_of_the_interface() -> None:
    assert {str(verdict): code for verdict, code in EXIT_CODES.items()} == {
        "match": 0,
        "mismatch": 10,
        "not comparable": 11,
        "drift": 12,
    }


def test_a_changed_token_is_reported_at_its_position_with_both_tokens_and_margins(golden: Golden) -> None:
    comparison = compare(golden, change(golden, {"greedy/1": lambda c: other_bits(3)(other_token(5)(c))}))
    assert (comparison.verdict, comparison.reason) == (Verdict.MISMATCH, Reason.NUMERIC)
    assert comparison.first is not None
    assert comparison.first.divergence is not None
    assert comparison.first.id == "greedy/1"
    assert comparison.first.first_bit_difference == 3
    assert comparison.first.divergence.position == 5
    expected, found = comparison.first.divergence.expected, comparison.first.divergence.found
    assert (expected.id, expected.text, found.id, found.text) == (15, " word15", 999, "")
    assert expected.margin_nats == 2.0
    assert expected.margin_ulps == 1.0, "all logits of the golden lie on a grid of 2 nats"


def test_each_level_counts_its_prompts(golden: Golden) -> None:
    comparison = compare(golden, change(golden, {"greedy/0": other_token(5), "sampled/1": other_bits(0)}))
    assert [(row.level, row.differing) for row in comparison.levels] == [
        ("H0", 0),
        ("H1", 1),
        ("H2", 0),
        ("H3", 2),
    ]
    assert all(row.prompts == 10 for row in comparison.levels)


def test_other_bits_under_the_same_tokens_are_a_numeric_mismatch(golden: Golden) -> None:
    comparison = compare(golden, change(golden, {"greedy/0": other_bits(3)}))
    assert (comparison.verdict, comparison.reason) == (Verdict.MISMATCH, Reason.NUMERIC)
    assert comparison.detail == "tokens same, bits differ"
    assert comparison.first is not None
    assert comparison.first.divergence is None
    assert comparison.first.first_bit_difference == 3


def test_the_sign_of_zero_is_a_difference_of_bits(golden: Golden) -> None:
    sides = [
        change(golden, {"greedy/0": lambda c, z=zero: replace(c, logprobs=pack_floats([z] + [-1.0] * 23))})  # type: ignore[misc]
        for zero in (0.0, -0.0)
    ]
    assert compare(*sides).reason is Reason.NUMERIC


def test_other_likeliest_tokens_alone_are_a_numeric_mismatch(golden: Golden) -> None:
    comparison = compare(
        golden, change(golden, {"greedy/0": lambda c: replace(c, topk_ids=pack_ids([5] * 16))})
    )
    assert comparison.reason is Reason.NUMERIC
    assert [row.level for row in comparison.levels if not row.equal] == ["H2"]
    assert comparison.first is not None


def test_generated_tokens_come_before_replayed_ones_as_first_divergence(golden: Golden) -> None:
    replayed_first = tuple(sorted(golden.completions, key=lambda c: c.lane != "replay"))
    golden = replace(golden, completions=replayed_first)
    found = change(
        golden, {"replay/greedy/0": other_token(0), "greedy/2": other_token(7), "sampled/0": other_token(1)}
    )
    first = compare(golden, found).first
    assert first is not None
    assert first.id == "greedy/2"


def test_a_shorter_answer_parts_where_it_ends(golden: Golden) -> None:
    def cut(c: object) -> object:
        return replace(c, output_ids=c.output_ids[:12], topk_ids=c.topk_ids[:24], logprobs=c.logprobs[:36])  # type: ignore[attr-defined,type-var]

    first = compare(golden, change(golden, {"greedy/0": cut})).first  # type: ignore[dict-item]
    assert first is not None
    assert first.divergence is not None
    assert (first.divergence.position, first.divergence.found.id) == (3, None)
    assert first.divergence.found.margin_nats is None


def test_other_prompt_ids_are_not_comparable_and_the_first_is_named(golden: Golden) -> None:
    found = change(golden, {"greedy/1": lambda c: replace(c, tokenized=pack_ids([1, 9, 1]))})
    comparison = compare(golden, found)
    assert (comparison.verdict, comparison.reason) == (Verdict.NOT_COMPARABLE, Reason.TOKENIZER)
    assert comparison.tokenizer is not None
    assert (comparison.tokenizer.prompt, comparison.tokenizer.position) == ("greedy/1", 1)
    assert (comparison.tokenizer.expected, comparison.tokenizer.found) == (2, 9)


def test_a_longer_prompt_is_reported_behind_the_common_part(golden: Golden) -> None:
    found = change(golden, {"greedy/1": lambda c: replace(c, tokenized=c.tokenized + pack_ids([4]))})
    tokenizer = compare(golden, found).tokenizer
    assert tokenizer is not None
    assert (tokenizer.position, tokenizer.expected, tokenizer.found) == (3, None, 4)


def test_other_prompts_are_not_comparable(golden: Golden) -> None:
    fewer = replace(golden, completions=golden.completions[1:])
    assert compare(golden, fewer).reason is Reason.SUITE
    assert compare(golden, replace(golden, request=replace(golden.request, top_k=3))).reason is Reason.SUITE
    fed = change(golden, {"sampled/0": lambda c: replace(c, prompt_ids=pack_ids([3]))})
    assert compare(golden, fed).detail == "the suites differ: other token ids were fed, first in sampled/0"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_log_probability_that_is_no_number_is_unstable(golden: Golden, value: float) -> None:
    found = change(golden, {"greedy/0": lambda c: replace(c, logprobs=pack_floats([value] * 24))})
    comparison = compare(golden, found)
    assert (comparison.verdict, comparison.reason) == (Verdict.MISMATCH, Reason.UNSTABLE)


def test_a_golden_too_small_for_the_asked_power_is_not_comparable() -> None:
    comparison = too_weak(458, change=0.01)
    assert comparison is not None
    assert (comparison.exit_code, comparison.reason) == (11, Reason.POWER)
    assert comparison.detail == "458 tokens are compared; 459 see a per-token change of 1 % with 99 %"
    assert too_weak(459, change=0.01) is None


def test_other_weights_are_a_mismatch_even_under_equal_answers(golden: Golden) -> None:
    comparison = compare(golden, replace(golden, weights={"embed": "aa", "layers.0": "xx", "new": "cc"}))
    assert (comparison.verdict, comparison.reason) == (Verdict.MISMATCH, Reason.WEIGHTS)
    assert comparison.detail == "2 of 3 loaded tensors differ, the answers are equal all the same"
    assert comparison.weights is not None
    assert comparison.weights.names == ("layers.0", "new")


def test_tensors_that_an_engine_in_its_own_process_names_by_rank_say_nothing(golden: Golden) -> None:
    ranked = {f"rank0.{name}": "xx" for name in golden.weights}
    assert compare(golden, replace(golden, weights=ranked)).verdict is Verdict.MATCH
    assert compare(golden, replace(golden, weights={})).reason is Reason.WEIGHTS


def test_weights_are_named_before_what_they_cause(golden: Golden) -> None:
    found = replace(change(golden, {name: other_token(0) for name in EVERY_PROMPT}), weights={})
    assert compare(golden, found).reason is Reason.WEIGHTS


def test_equal_greedy_prompts_and_other_sampled_ones_are_sampling(golden: Golden) -> None:
    found = change(golden, {"sampled/0": lambda c: other_bits(1)(other_token(2)(c))})
    assert compare(golden, found).reason is Reason.SAMPLING


def test_bits_alone_of_sampled_prompts_are_numeric_for_the_same_tokens_were_drawn(golden: Golden) -> None:
    comparison = compare(golden, change(golden, {"sampled/0": other_bits(1)}))
    assert (comparison.reason, comparison.detail) == (Reason.NUMERIC, "tokens same, bits differ")


def test_other_alternatives_of_the_same_probability_are_told_as_such(golden: Golden) -> None:
    def other_alternative(completion: Completion) -> Completion:
        ids = list(unpack_ids(completion.topk_ids))
        return replace(completion, topk_ids=pack_ids([*ids[:-1], 998]))

    comparison = compare(golden, change(golden, {"greedy/0": other_alternative}))
    assert {row.level for row in comparison.levels if not row.equal} == {"H2"}
    assert comparison.reason is Reason.NUMERIC
    assert comparison.detail == "tokens and bits same, other alternatives of the same probability"
    assert comparison.first is not None
    assert parting_text(comparison.first) == "the alternatives, tokens and bits same"


def test_equal_odds_and_another_token_are_sampling_whatever_the_lane(golden: Golden) -> None:
    assert compare(golden, change(golden, {"greedy/0": other_token(2)})).reason is Reason.SAMPLING


def test_another_seed_in_the_request_is_sampling_and_stays_comparable(golden: Golden) -> None:
    lanes = tuple(
        replace(lane, prompts=tuple(replace(p, sampling=replace(p.sampling, seed=9)) for p in lane.prompts))
        for lane in golden.request.lanes
    )
    found = change(golden, {"sampled/1": other_token(0)})
    found = replace(found, request=replace(found.request, lanes=lanes))
    assert compare(golden, found).reason is Reason.SAMPLING


def test_only_a_differing_replay_is_numeric(golden: Golden) -> None:
    comparison = compare(golden, change(golden, {"replay/sampled/0": other_bits(1)}))
    assert (comparison.reason, comparison.detail) == (Reason.NUMERIC, "tokens same, bits differ")


def test_most_prompts_parting_at_once_where_the_model_was_sure_are_another_model(golden: Golden) -> None:
    found = change(golden, {name: lambda c: other_bits(0)(other_token(2)(c)) for name in EVERY_PROMPT[:3]})
    assert compare(golden, found).reason is Reason.MODEL


def test_half_of_the_prompts_or_later_tokens_or_ties_are_not_another_model(golden: Golden) -> None:
    late = change(golden, {name: lambda c: other_bits(0)(other_token(3)(c)) for name in EVERY_PROMPT[:3]})
    few = change(golden, {name: lambda c: other_bits(0)(other_token(2)(c)) for name in EVERY_PROMPT[:2]})
    tied = change(
        golden, {name: lambda c: replace(c, logprobs=pack_floats([-0.5] * 24)) for name in EVERY_PROMPT}
    )
    close = change(tied, {name: lambda c: other_bits(0)(other_token(2)(c)) for name in EVERY_PROMPT[:3]})
    assert [compare(golden, late).reason, compare(golden, few).reason] == [Reason.NUMERIC] * 2
    assert compare(tied, close).reason is Reason.NUMERIC


def test_flips_are_counted_per_token_read_alike(golden: Golden) -> None:
    flips = compare(golden, change(golden, {"greedy/0": other_token(3)})).flips
    assert flips is not None
    assert (flips.events, flips.trials) == (1, 4 + 4 * 8)
    assert flips.low < 1 / 36 < flips.high


def test_replay_flips_are_other_likeliest_tokens(golden: Golden) -> None:
    likeliest = [i for token in range(8) for i in (token if token < 6 else 77, 100)]
    found = change(golden, {"replay/greedy/0": lambda c: replace(c, topk_ids=pack_ids(likeliest))})
    flips = compare(golden, found).replay_flips
    assert flips is not None
    assert (flips.events, flips.trials) == (2, 40)


def test_differences_are_counted_in_decades_up_to_the_divergence(golden: Golden) -> None:
    found = change(golden, {"greedy/0": lambda c: other_bits(1, nats=0.015625)(other_token(2)(c))})
    differences = compare(golden, found).differences
    assert differences is not None
    assert differences.decades == (Decade(exponent=None, count=1 + 9 * 8), Decade(exponent=-2, count=1))
    assert differences.ulp_nats == 2.0
    assert differences.ulp_decades == (Decade(exponent=None, count=1 + 9 * 8), Decade(exponent=-3, count=1))
    assert (differences.median_nats, differences.largest_nats) == (0.0, 0.015625)


def test_a_comparison_says_what_its_golden_can_see(golden: Golden) -> None:
    visible = compare(golden, golden).visible
    assert visible is not None
    assert (visible.power.tokens, visible.power.prompts) == (40, 5)
    assert visible.power.sees_per_token == pytest.approx(1 - 0.01 ** (1 / 40))
    assert visible.sees_per_prompt == pytest.approx(1 - 0.01 ** (1 / 5))


def test_a_repeat_that_differs_is_unstable_whatever_the_difference(golden: Golden) -> None:
    comparison = compare_repeat(golden, change(golden, {"greedy/0": other_bits(3)}))
    assert (comparison.verdict, comparison.reason) == (Verdict.MISMATCH, Reason.UNSTABLE)
    assert comparison.detail == (
        "the image disagrees with itself in a new container: tokens same, bits differ,"
        " in 1 of 10 answers, first in greedy/0 at token 3 of 8, at most 9.8e-04 nats apart"
    )
    assert compare_repeat(golden, golden).verdict is Verdict.MATCH


def test_verdicts_without_a_run_carry_their_evidence() -> None:
    other_class = not_comparable_class((("threads", 2, 1), ("flags", ("avx2",), ())))
    assert (other_class.exit_code, other_class.reason) == (11, Reason.CLASS)
    assert other_class.detail == "the numeric class differs: threads, flags"
    assert [item.found for item in other_class.class_differences] == [1, ()]
    moved = moved_tag("sha256:aa", "sha256:bb")
    assert (moved.exit_code, moved.reason) == (10, Reason.MOVED_TAG)
    assert "expected sha256:aa, found sha256:bb" in moved.detail


@pytest.mark.parametrize(
    ("events", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.3084971),
        (10, 10, 0.6915029, 1.0),
        (5, 10, 0.1870860, 0.8129140),
        (1, 100, 0.0002531, 0.0544594),
        (0, 0, 0.0, 1.0),
    ],
)
def test_intervals_are_those_of_published_tables(events: int, trials: int, low: float, high: float) -> None:
    assert clopper_pearson(events, trials) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_end_leaves_its_tail_of_the_binomial_distribution(case: tuple[int, int]) -> None:
    events, trials = case
    low, high = clopper_pearson(events, trials)
    if events:
        assert _binomial_tail(range(events, trials + 1), trials, low) == pytest.approx(0.025, rel=1e-6)
    if events < trials:
        assert _binomial_tail(range(events + 1), trials, high) == pytest.approx(0.025, rel=1e-6)


def _binomial_tail(counts: range, trials: int, p: float) -> float:
    return math.fsum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in counts)


@given(st.floats(1e-4, 0.5))
def test_needed_trials_see_the_change_and_one_fewer_do_not(change: float) -> None:
    needed = needed_trials(change)
    assert smallest_visible_change(needed) <= change * (1 + 1e-9)
    assert smallest_visible_change(needed - 1) > change * (1 - 1e-9) or needed == 1


def test_no_tokens_see_nothing() -> None:
    assert power(tokens=0, prompts=0).sees_per_token == 1.0
