"""Two goldens -> Comparison: a verdict, its reason, and everything that shows where the answers part."""

from enum import StrEnum
from typing import Any, TypeAlias

import msgspec

from repro_image.core.across import Across, judge_across
from repro_image.core.diagnosis import all_equal, fed_otherwise, is_other_model, is_sampling, unlike
from repro_image.core.differences import (
    Differences,
    LevelRow,
    PromptRow,
    Rate,
    Tables,
    TokenizerDifference,
    Visible,
    WeightDifferences,
    are_untold,
    count_differences,
    tokenizer_difference,
)
from repro_image.core.epoch import NoiseFloor
from repro_image.core.golden import Golden, has_nonfinite
from repro_image.core.intervals import needed_trials

ClassDifferences: TypeAlias = tuple[tuple[str, Any, Any], ...]


class Verdict(StrEnum):
    MATCH = "match"
    MISMATCH = "mismatch"
    NOT_COMPARABLE = "not comparable"
    DRIFT = "drift"


EXIT_CODES = {Verdict.MATCH: 0, Verdict.MISMATCH: 10, Verdict.NOT_COMPARABLE: 11, Verdict.DRIFT: 12}


class Reason(StrEnum):
    """Why the verdict is no match.

    CONSTRAINT: this machine cannot run the image. SUITE: the two sides were not asked the same prompts.
    """

    CONSTRAINT = "constraint"
    CLASS = "class"
    SUITE = "suite"
    TOKENIZER = "tokenizer"
    MOVED_TAG = "moved tag"
    UNSTABLE = "unstable"
    POWER = "power"
    WEIGHTS = "weights"
    SAMPLING = "sampling"
    MODEL = "model"
    NUMERIC = "numeric"


class FieldDifference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    field: str
    expected: Any
    found: Any


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much was asked where a run stopped at its first difference: answers, of all that the golden has."""

    prompts: int
    of_prompts: int


class Comparison(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `verify` found. Fields that the verdict did not come to are empty.

    detail:       one sentence for people.
    first:        the row of the first divergence: of generated tokens before replayed ones before bits alone.
    flips:        tokens that differ where both sides had read the same, per generated token.
    replay_flips: most likely tokens that differ, per replayed token.
    part:         None where everything was asked; else all counts are of this part.
    across:       how a run in another numeric class was judged; class_differences then say which.
    """

    verdict: Verdict
    reason: Reason | None = None
    detail: str
    levels: tuple[LevelRow, ...] = ()
    prompts: tuple[PromptRow, ...] = ()
    first: PromptRow | None = None
    flips: Rate | None = None
    replay_flips: Rate | None = None
    differences: Differences | None = None
    weights: WeightDifferences | None = None
    visible: Visible | None = None
    constraints: tuple[FieldDifference, ...] = ()
    class_differences: tuple[FieldDifference, ...] = ()
    tokenizer: TokenizerDifference | None = None
    images: FieldDifference | None = None
    part: Part | None = None
    across: Across | None = None

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    @property
    def fields(self) -> tuple[FieldDifference, ...]:
        """What differed or was broken before any token was compared."""
        return (*self.constraints, *self.class_differences, *([self.images] if self.images else []))


def compare(expected: Golden, found: Golden) -> Comparison:
    """Return the verdict on ``found``, which ran in the numeric class of ``expected``."""
    gate = _incomparable(expected, found)
    if gate:
        return gate
    tables = count_differences(expected, found)
    return _unsound(found, tables) or _judge(expected, found, tables)


def compare_across(
    expected: Golden, found: Golden, *, floor: NoiseFloor | None, differences: ClassDifferences
) -> Comparison:
    """Return the verdict on ``found``, which ran in another class: by its replay and the noise floor.

    floor:       of ``expected``; None where its record has none, and then nothing can be judged.
    differences: from ``class_differences``.
    """
    gate = _incomparable(expected, found)
    if gate is None:
        tables = count_differences(expected, found)
        gate = _unsound(found, tables) or _judge_across(expected, found, tables, floor, differences)
    return msgspec.structs.replace(gate, class_differences=_fields(differences))


def compare_repeat(first: Golden, again: Golden) -> Comparison:
    """Return whether a run agrees with itself; any difference is the mismatch ``unstable``."""
    comparison = compare(first, again)
    if comparison.verdict is Verdict.MATCH:
        return comparison
    detail = f"the image disagrees with itself in a new container: {comparison.detail}{_where(comparison)}"
    return msgspec.structs.replace(
        comparison, verdict=Verdict.MISMATCH, reason=Reason.UNSTABLE, detail=detail
    )


def _where(comparison: Comparison) -> str:
    """Return in how many answers the sides differ, where first and how far apart; empty where none does."""
    parted = [row for row in comparison.prompts if not all(row.equal.values())]
    if not parted:
        return ""
    row = comparison.first or parted[0]
    told = f", in {len(parted)} of {len(comparison.prompts)} answers, first in {row.id}"
    position = row.divergence.position if row.divergence else row.first_bit_difference
    if position is not None:
        told += f" at token {position} of {row.tokens}"
    furthest = comparison.differences.largest_nats if comparison.differences else None
    return f"{told}, at most {furthest:.1e} nats apart" if furthest else told


def too_weak(tokens: int, *, change: float) -> Comparison | None:
    """Return the verdict that ``tokens`` are too few to see a per-token ``change`` with 99 %, or None."""
    needed = needed_trials(change)
    if tokens >= needed:
        return None
    seen = f"{needed} see a per-token change of {100 * change:.3g} % with 99 %"
    detail = f"{tokens} tokens are compared; {seen}"
    return Comparison(verdict=Verdict.NOT_COMPARABLE, reason=Reason.POWER, detail=detail)


def nothing_to_serve() -> Comparison:
    """Return the verdict where no lane of the suite can be asked over HTTP."""
    detail = "a server can be asked nothing of the suite: no lane is asked one by one and without replay"
    return Comparison(verdict=Verdict.NOT_COMPARABLE, reason=Reason.SUITE, detail=detail)


def not_comparable_class(differences: ClassDifferences) -> Comparison:
    """Return the verdict where the numeric class differs; ``differences`` come from ``class_differences``."""
    fields = ", ".join(field for field, _, _ in differences)
    return Comparison(
        verdict=Verdict.NOT_COMPARABLE,
        reason=Reason.CLASS,
        detail=f"the numeric class differs: {fields}",
        class_differences=_fields(differences),
    )


def no_noise_floor(differences: ClassDifferences) -> Comparison:
    """Return the verdict where classes cannot be judged, since the golden's record has no noise floor."""
    return msgspec.structs.replace(
        not_comparable_class(differences),
        detail="the epoch has no noise floor in this class, and without one other classes cannot be judged",
    )


def not_comparable_constraint(broken: tuple[FieldDifference, ...]) -> Comparison:
    """Return the verdict where this machine cannot run the image; ``broken``: each rule, needed and found."""
    return Comparison(
        verdict=Verdict.NOT_COMPARABLE,
        reason=Reason.CONSTRAINT,
        detail=f"this machine cannot run the image: {', '.join(item.field for item in broken)}",
        constraints=broken,
    )


def moved_tag(expected: str, found: str) -> Comparison:
    """Return the verdict where a tag points to config digest ``found`` and its epoch says ``expected``."""
    return Comparison(
        verdict=Verdict.MISMATCH,
        reason=Reason.MOVED_TAG,
        detail=f"the tag points to another image than its epoch: expected {expected}, found {found}",
        images=FieldDifference(field="image", expected=expected, found=found),
    )


def _fields(differences: ClassDifferences) -> tuple[FieldDifference, ...]:
    return tuple(FieldDifference(field=f, expected=a, found=b) for f, a, b in differences)


def _incomparable(expected: Golden, found: Golden) -> Comparison | None:
    """Return the verdict where the two sides were not asked, or did not read, the same."""
    other = unlike(expected, found)
    if other:
        return Comparison(verdict=Verdict.NOT_COMPARABLE, reason=Reason.SUITE, detail=other)
    tokenizer = tokenizer_difference(expected, found)
    if tokenizer:
        return Comparison(
            verdict=Verdict.NOT_COMPARABLE,
            reason=Reason.TOKENIZER,
            detail=f"the tokenizer or template differs: {tokenizer.prompt}, first at id {tokenizer.position}",
            levels=count_differences(expected, found).levels,
            tokenizer=tokenizer,
        )
    other = fed_otherwise(expected, found)
    if other:
        return Comparison(verdict=Verdict.NOT_COMPARABLE, reason=Reason.SUITE, detail=other)
    return None


def _unsound(found: Golden, tables: Tables) -> Comparison | None:
    if has_nonfinite(found.completions):
        return _told(tables, Verdict.MISMATCH, Reason.UNSTABLE, "a log-probability is NaN or infinite")
    return None


def _told(tables: Tables, verdict: Verdict, reason: Reason | None, detail: str) -> Comparison:
    return Comparison(
        verdict=verdict,
        reason=reason,
        detail=detail,
        levels=tables.levels,
        prompts=tables.prompts,
        first=_first(tables.prompts),
        flips=tables.flips,
        replay_flips=tables.replay_flips,
        differences=tables.differences,
        weights=tables.weights,
        visible=tables.visible,
    )


def _judge(expected: Golden, found: Golden, tables: Tables) -> Comparison:
    """Return the verdict behind the gates: match, or mismatch with the first reason that fits."""
    rows = tables.prompts
    if tables.weights:
        return _other_weights(tables)
    if all_equal(rows):
        return _told(tables, Verdict.MATCH, None, _equal(expected, rows))
    if is_sampling(expected, found, rows):
        detail = "the model computes the same and draws other tokens"
        return _told(tables, Verdict.MISMATCH, Reason.SAMPLING, detail)
    if is_other_model(rows):
        detail = "most prompts part at once, where the model was sure"
        return _told(tables, Verdict.MISMATCH, Reason.MODEL, detail)
    return _told(tables, Verdict.MISMATCH, Reason.NUMERIC, _numeric(rows))


def _numeric(rows: tuple[PromptRow, ...]) -> str:
    if any(not row.equal["H1"] for row in rows):
        return "tokens and bits differ"
    if any(not row.equal["H3"] for row in rows):
        return "tokens same, bits differ"
    return "tokens and bits same, other alternatives of the same probability"


def _judge_across(
    expected: Golden,
    found: Golden,
    tables: Tables,
    floor: NoiseFloor | None,
    differences: ClassDifferences,
) -> Comparison:
    """Return the verdict on another class: beside weights and full equality, only the replay counts."""
    if tables.weights:
        return _other_weights(tables)
    if all_equal(tables.prompts):
        detail = f"{_equal(expected, tables.prompts)}, in another numeric class"
        return _told(tables, Verdict.MATCH, None, detail)
    if floor is None:
        return no_noise_floor(differences)
    across = judge_across(expected, found, floor)
    if across is None:
        detail = "the golden replays nothing, and other classes are judged by the replay alone"
        return _told(tables, Verdict.NOT_COMPARABLE, Reason.CLASS, detail)
    verdict, reason = (Verdict.DRIFT, None) if across.is_drift else (Verdict.MISMATCH, Reason.NUMERIC)
    detail = across.told()
    if are_untold(expected.weights, found.weights):
        detail += "; weights are not compared, for no tensor has the same name"
    told = _told(tables, verdict, reason, detail)
    # What an exact comparison would see says nothing of a judgement that tolerates the noise floor.
    return msgspec.structs.replace(told, across=across, visible=None)


def _other_weights(tables: Tables) -> Comparison:
    assert tables.weights is not None  # noqa: S101 - asked by both callers
    same = "the answers are equal all the same" if all_equal(tables.prompts) else "and the answers differ"
    detail = f"{tables.weights.differing} of {tables.weights.tensors} loaded tensors differ, {same}"
    return _told(tables, Verdict.MISMATCH, Reason.WEIGHTS, detail)


def _equal(expected: Golden, rows: tuple[PromptRow, ...]) -> str:
    return f"every level is equal over {len(rows)} prompts and {expected.token_count} tokens"


def _first(rows: tuple[PromptRow, ...]) -> PromptRow | None:
    parted = [row for row in rows if row.divergence]
    own = [row for row in parted if not row.replay]
    changed = [row for row in rows if row.first_bit_difference is not None or not all(row.equal.values())]
    return next(iter([*own, *parted, *changed]), None)
