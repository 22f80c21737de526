"""core/together.py: what it changes in one golden that prompts were asked together."""

import pytest
from msgspec.structs import replace

from repro_image.core.together import AskedTogether, asked_together
from tests.unit.made_goldens import change, make_golden, other_bits, other_token, with_batch


def test_a_suite_without_such_lanes_says_nothing() -> None:
    assert asked_together(make_golden()) == ()


def test_equal_answers_are_counted_as_equal() -> None:
    assert asked_together(with_batch(make_golden())) == (
        AskedTogether(
            alone="greedy",
            together="batch",
            batch_invariant=False,
            prompts=3,
            differing={"H1": 0, "H2": 0, "H3": 0},
        ),
    )


def test_each_level_counts_its_own_prompts() -> None:
    golden = change(with_batch(make_golden()), {"batch/0": other_token(2), "batch/2": other_bits(3)})
    (lanes,) = asked_together(golden)
    assert lanes.differing == {"H1": 1, "H2": 0, "H3": 2}
    assert not lanes.is_broken_promise


def test_lanes_of_two_engines_or_with_other_settings_are_not_compared() -> None:
    assert asked_together(with_batch(make_golden(), batch_invariant=True)) == ()
    golden = with_batch(make_golden())
    *others, batch = golden.request.lanes
    longer = tuple(replace(p, sampling=replace(p.sampling, max_tokens=9)) for p in batch.prompts)
    request = replace(golden.request, lanes=(*others, replace(batch, prompts=longer)))
    assert asked_together(replace(golden, request=request)) == ()


@pytest.mark.parametrize("is_different", [True, False])
def test_a_batch_invariant_engine_promised_that_nothing_differs(is_different: bool) -> None:
    golden = with_batch(make_golden(), batch_invariant=True)
    *others, batch = golden.request.lanes
    alone = replace(
        batch,
        name="invariant",
        together=False,
        prompts=tuple(replace(p, id=f"invariant/{n}") for n, p in enumerate(batch.prompts)),
    )
    answers = [c for c in golden.completions if c.lane == "batch"]
    golden = replace(
        golden,
        request=replace(golden.request, lanes=(*others, alone, batch)),
        completions=(
            *(c for c in golden.completions if c.lane != "batch"),
            *(replace(c, id=f"invariant/{n}", lane="invariant") for n, c in enumerate(answers)),
            *answers,
        ),
    )
    if is_different:
        golden = change(golden, {"batch/1": other_bits(0)})
    (lanes,) = asked_together(golden)
    assert (lanes.alone, lanes.together) == ("invariant", "batch")
    assert lanes.is_broken_promise is is_different
