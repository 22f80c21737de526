"""Running again and judging: repeats, doubts, stopping at the first difference, other classes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from repro_image.adapters.container import GoldenRun
from repro_image.adapters.engine import Engine
from repro_image.adapters.store import Store
from repro_image.core.comparison import Part, Reason, Verdict
from repro_image.core.epoch import ClassGolden, NoiseFloor
from repro_image.core.golden import Golden, Inside, RunnerOutput
from repro_image.core.parts import golden_part
from repro_image.steps import record
from repro_image.steps.judge import Judged, Judging, before_run, run_and_judge
from repro_image.steps.ready import Ready
from repro_image.steps.record import class_of
from tests.ledger_samples import sample_class
from tests.unit.made_goldens import INSIDE, change, make_golden, other_bits, other_token
from tests.unit.test_record_step import asking, output

GOLDEN = make_golden()
NUMERIC = change(GOLDEN, {"greedy/1": other_bits(3)})
AVX2 = replace(INSIDE, capability="AVX2")
FLOOR = NoiseFloor(flip_rate=0.01, median_nats=0.01, p99_nats=0.2, tokens=400)


class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def status(self, text: str) -> None: ...


def entry(floor: NoiseFloor | None = FLOOR) -> ClassGolden:
    made = sample_class(golden=GOLDEN)
    fingerprint = replace(made.fingerprint, numeric_class=class_of(asking(GOLDEN), INSIDE))
    return replace(made, fingerprint=fingerprint, noise_floor=floor)


def judging(**how: object) -> Judging:
    plain = Judging(entry=entry(), golden=GOLDEN, across=False, repeat=1, fail_fast=False, doubt=False)
    return dataclasses.replace(plain, **how)  # type: ignore[arg-type]


Judge = Callable[..., tuple[Judged, list[GoldenRun], list[str]]]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Judge:
    """Judge runs that answer what the test says, one by one; also returns what was asked and told."""

    def judged(
        how: Judging, *answers: Golden, inside: Inside = INSIDE
    ) -> tuple[Judged, list[GoldenRun], list[str]]:
        asked: list[GoldenRun] = []

        def run_golden(run: GoldenRun, **_: object) -> RunnerOutput:
            asked.append(run)
            return msgspec.structs.replace(output(answers[len(asked) - 1]), inside=inside)

        monkeypatch.setattr(record, "run_golden", run_golden)
        told = Lines()
        found = run_and_judge(asking(GOLDEN), how, engine=Engine(), store=Store(tmp_path), reporter=told)
        return found, asked, told.lines

    return judged


def part(golden: Golden, answers: int) -> Golden:
    made = golden_part(golden, answers)
    assert made is not None
    return made


def test_one_run_that_agrees_is_a_match(judge: Judge) -> None:
    found, asked, told = judge(judging(doubt=True), GOLDEN)
    assert (found.comparison.verdict, found.runs, found.comparison.part) == (Verdict.MATCH, 1, None)
    assert asked[0].expected is None
    assert told == ["golden run 1 of 1: 4.0 s"]


def test_repeats_go_on_while_they_agree_and_end_with_the_first_that_does_not(judge: Judge) -> None:
    found, asked, _ = judge(judging(repeat=3), GOLDEN, GOLDEN, GOLDEN)
    assert (found.comparison.verdict, found.runs) == (Verdict.MATCH, 3)
    found, asked, _ = judge(judging(repeat=5), GOLDEN, NUMERIC)
    assert (found.comparison.reason, found.runs, len(asked)) == (Reason.UNSTABLE, 2, 2)
    found, _, _ = judge(judging(repeat=3), NUMERIC, NUMERIC, NUMERIC)
    assert (found.comparison.reason, found.runs) == (Reason.NUMERIC, 3)


def test_fail_fast_stops_within_a_run_and_compares_what_was_asked(judge: Judge) -> None:
    found, asked, told = judge(judging(fail_fast=True, repeat=3), part(NUMERIC, 2))
    assert asked[0].expected is not None
    assert (found.comparison.verdict, found.comparison.reason) == (Verdict.MISMATCH, Reason.NUMERIC)
    assert found.comparison.part == Part(prompts=2, of_prompts=10)
    assert [row.prompts for row in found.comparison.levels] == [2] * 4
    assert found.comparison.visible is not None
    assert found.comparison.visible.power.tokens == 16, "the statement is about what was compared"
    assert told == ["golden run 1 of 3: 4.0 s, stopped after 2 of 10 answers"]


def test_fail_fast_compares_a_later_part_with_the_first_run(judge: Judge) -> None:
    found, _, _ = judge(judging(fail_fast=True, repeat=2), GOLDEN, part(NUMERIC, 2))
    assert found.comparison.reason is Reason.UNSTABLE
    assert found.comparison.part == Part(prompts=2, of_prompts=10)


def test_an_unexplained_difference_is_asked_for_again_up_to_where_it_shows(judge: Judge) -> None:
    again = part(NUMERIC, 2)
    found, asked, told = judge(judging(doubt=True), NUMERIC, again, again, again)
    assert (found.comparison.reason, found.runs) == (Reason.NUMERIC, 4)
    assert found.comparison.part is None, "the verdict is about the whole run"
    assert [len(run.request.lanes[0].prompts) for run in asked] == [3, 2, 2, 2]
    assert told[-1] == "the difference again, 3 of 3: 4.0 s"


def test_an_image_that_answers_otherwise_when_asked_again_is_unstable(judge: Judge) -> None:
    found, asked, _ = judge(judging(doubt=True), NUMERIC, part(NUMERIC, 2), part(GOLDEN, 2))
    assert (found.comparison.reason, len(asked)) == (Reason.UNSTABLE, 3)
    assert found.comparison.exit_code == 10


@pytest.mark.parametrize(
    "explained",
    [
        replace(NUMERIC, weights={"embed": "xx"}),
        change(GOLDEN, {"sampled/0": lambda c: other_bits(1)(other_token(2)(c))}),
    ],
)
def test_a_difference_that_is_explained_is_not_asked_for_again(judge: Judge, explained: Golden) -> None:
    found, asked, _ = judge(judging(doubt=True), explained)
    assert found.comparison.verdict is Verdict.MISMATCH
    assert len(asked) == 1


def test_a_class_that_only_the_run_shows_is_not_comparable_unless_judged_across(judge: Judge) -> None:
    found, _, _ = judge(judging(), NUMERIC, inside=AVX2)
    assert (found.comparison.exit_code, found.comparison.reason) == (11, Reason.CLASS)
    found, asked, _ = judge(judging(across=True, fail_fast=True), NUMERIC, inside=AVX2)
    assert (found.comparison.verdict, found.comparison.exit_code) == (Verdict.DRIFT, 12)
    assert [item.field for item in found.comparison.class_differences] == ["capability"]
    assert asked[0].expected is None, "one difference proves nothing across classes"


def ready(threads: int = 2, cpuset: str = "0,1") -> Ready:
    wanted = replace(class_of(asking(GOLDEN), INSIDE), threads=threads, capability="")
    return Ready(host=asking(GOLDEN).host, threads=threads, cpuset=cpuset, gpus=(), wanted=wanted)


def test_what_needs_no_run_is_told_before_one() -> None:
    assert before_run(judging(), ready(), must_see=None) is None
    other = before_run(judging(), ready(threads=1), must_see=None)
    assert other is not None
    assert other.detail == "the numeric class differs: threads"
    assert before_run(judging(across=True), ready(threads=1), must_see=None) is None
    few = before_run(judging(across=True), ready(threads=1, cpuset=""), must_see=None)
    assert few is not None
    assert few.detail == "the numeric class differs: threads, whole cores"
    bare = before_run(judging(across=True, entry=entry(None)), ready(threads=1), must_see=None)
    assert bare is not None
    assert "no noise floor" in bare.detail


def test_the_asked_power_counts_generated_tokens_and_across_classes_replayed_ones() -> None:
    assert before_run(judging(), ready(), must_see=0.2) is None
    weak = before_run(judging(), ready(), must_see=0.1)
    assert weak is not None
    assert (weak.exit_code, weak.reason) == (11, Reason.POWER)
    assert weak.detail.startswith("40 tokens are compared; 44 see")
    few = part(GOLDEN, 5)
    across = before_run(judging(across=True, golden=few), ready(threads=1), must_see=0.2)
    assert across is not None
    assert across.detail.startswith("0 tokens are compared")
