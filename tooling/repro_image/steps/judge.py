"""Run a golden again, as often as was asked or as a doubt needs, and judge what comes back."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec

from repro_image.adapters.engine import Engine
from repro_image.adapters.store import Store
from repro_image.core.comparison import (
    ClassDifferences,
    Comparison,
    Part,
    Reason,
    Verdict,
    compare,
    compare_across,
    compare_repeat,
    no_noise_floor,
    not_comparable_class,
    too_weak,
)
from repro_image.core.differences import replayed_tokens
from repro_image.core.epoch import ClassGolden
from repro_image.core.fingerprint import NumericClass, class_differences
from repro_image.core.golden import Golden
from repro_image.core.parts import expected_answers, golden_part, part_with
from repro_image.core.reporter import Reporter
from repro_image.steps.ready import Ready
from repro_image.steps.record import Answer, Asking, ask_again, class_of

# How often a difference that nothing explains is asked for again; it costs an engine start each time.
_DOUBTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Judging:
    """What a run is judged against, and how.

    entry, golden: what the epoch recorded.
    across:        judge another numeric class by replay and noise floor.
    repeat:        how often the golden is run, each time in a new container.
    fail_fast:     stop at the first difference, within a run too.
    doubt:         repeat what differs, where nothing explains it, to tell a numeric mismatch from an unstable
                   image.
    """

    entry: ClassGolden
    golden: Golden
    across: bool
    repeat: int
    fail_fast: bool
    doubt: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """runs: containers that were asked, whole or in part; sides: the two goldens that were compared."""

    comparison: Comparison
    sides: tuple[Golden, Golden]
    numeric_class: NumericClass
    runs: int


def before_run(judging: Judging, ready: Ready, *, must_see: float | None) -> Comparison | None:
    """Return the verdict that needs no run: another class, too few cores or too few tokens; else None.

    must_see: the per-token change that the comparison has to find; across classes the replay's tokens count.
    """
    differences = class_differences(judging.entry.fingerprint.numeric_class, ready.wanted)
    cores: ClassDifferences = () if ready.cpuset else (("whole cores", ready.threads, "fewer"),)
    if cores or (differences and not judging.across):
        return not_comparable_class((*differences, *cores))
    if differences and judging.entry.noise_floor is None:
        return no_noise_floor(differences)
    if must_see is None:
        return None
    tokens = replayed_tokens(judging.golden) if differences else judging.golden.token_count
    return too_weak(tokens, change=must_see)


def run_and_judge(
    asking: Asking, judging: Judging, *, engine: Engine, store: Store, reporter: Reporter
) -> Judged:
    """Return the verdict. A run that differs from the first one makes it unstable, and is the last."""
    ask = _Ask(asking=asking, judging=judging, engine=engine, store=store, reporter=reporter)
    first, runs = ask.whole(1), 1
    numeric_class = class_of(asking, first.inside)
    comparison, sides = _judge(judging, first.golden, numeric_class), (judging.golden, first.golden)
    for answer in _later_answers(ask, judging, comparison):
        runs += 1
        again = _repeat(first.golden, answer.golden)
        if again.verdict is not Verdict.MATCH:
            comparison, sides = again, (first.golden, answer.golden)
            break
    return Judged(comparison=comparison, sides=sides, numeric_class=numeric_class, runs=runs)


def _later_answers(ask: "_Ask", judging: Judging, comparison: Comparison) -> Iterator[Answer]:
    """Yield the answers of later runs, asked for one by one; ``comparison`` is that of the first."""
    if judging.fail_fast and comparison.verdict is Verdict.MISMATCH:
        return
    for number in range(2, judging.repeat + 1):
        yield ask.whole(number)
    if judging.doubt and comparison.reason is Reason.NUMERIC:
        part = _first_difference(judging.golden, comparison)
        for number in range(1, _DOUBTS + 1):
            yield ask.part(part, number)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ask:
    """Asks in a new container each time, and tells how long it took."""

    asking: Asking
    judging: Judging
    engine: Engine
    store: Store
    reporter: Reporter

    def whole(self, number: int) -> Answer:
        golden, asking = self.judging.golden, self.asking
        # Another class differs in bits by nature, so no single answer proves anything there.
        if self.judging.fail_fast and not self.judging.across:
            asking = replace(asking, expected=expected_answers(golden))
        answer = ask_again(asking, golden, engine=self.engine, store=self.store, reporter=self.reporter)
        asked, of = len(answer.golden.completions), len(golden.completions)
        stopped = f", stopped after {asked} of {of} answers" if asked < of else ""
        self.reporter.line(f"golden run {number} of {self.judging.repeat}: {answer.total_s:.1f} s{stopped}")
        return answer

    def part(self, part: Golden, number: int) -> Answer:
        answer = ask_again(self.asking, part, engine=self.engine, store=self.store, reporter=self.reporter)
        self.reporter.line(f"the difference again, {number} of {_DOUBTS}: {answer.total_s:.1f} s")
        return answer


def _judge(judging: Judging, found: Golden, numeric_class: NumericClass) -> Comparison:
    """Return the verdict on one run; its class may be another than was known before it ran."""
    expected = golden_part(judging.golden, len(found.completions)) or judging.golden
    differences = class_differences(judging.entry.fingerprint.numeric_class, numeric_class)
    if not differences:
        comparison = compare(expected, found)
    elif judging.across:
        floor = judging.entry.noise_floor
        comparison = compare_across(expected, found, floor=floor, differences=differences)
    else:
        comparison = not_comparable_class(differences)
    return _as_part(comparison, found, judging.golden)


def _repeat(first: Golden, again: Golden) -> Comparison:
    """Return whether ``again``, which may have been asked a part only, is what ``first`` was."""
    comparison = compare_repeat(golden_part(first, len(again.completions)) or first, again)
    return _as_part(comparison, again, first)


def _as_part(comparison: Comparison, found: Golden, whole: Golden) -> Comparison:
    asked, of = len(found.completions), len(whole.completions)
    part = Part(prompts=asked, of_prompts=of) if asked < of else None
    return msgspec.structs.replace(comparison, part=part)


def _first_difference(golden: Golden, comparison: Comparison) -> Golden:
    """Return the part of ``golden`` that ends with the first answer that differs."""
    differing = [number for number, row in enumerate(comparison.prompts) if not all(row.equal.values())]
    return golden_part(golden, part_with(golden.request, differing[0])) or golden
