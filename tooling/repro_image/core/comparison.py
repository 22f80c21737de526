"""Two goldens -> Comparison: a verdict, its reason, and everything that shows where the answers part."""

from collections.abc import Sequence
from enum import StrEnum
from statistics import median
from typing import Any

import msgspec

from repro_image.core.differences import (
    Differences,
    LevelRow,
    PromptRow,
    Rate,
    Tables,
    TokenizerDifference,
    Visible,
    WeightDifferences,
    count_differences,
    is_replay,
    line_up,
    tokenizer_difference,
)
from repro_image.core.golden import Completion, Golden, has_nonfinite
from repro_image.core.intervals import needed_trials

# GOLDEN's rule for "another model": most prompts part at once, at places where the model was sure.
_EARLY_TOKENS = 3
_SURE_NATS = 1.0


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


class Comparison(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `verify` found. Fields that the verdict did not come to are empty.

    detail:       one sentence for people.
    first:        the row of the first divergence: of generated tokens before replayed ones before bits alone.
    flips:        tokens that differ where both sides had read the same, per generated token.
    replay_flips: most likely tokens that differ, per replayed token.
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

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    @property
    def fields(self) -> tuple[FieldDifference, ...]:
        """What differed or was broken before any token was compared."""
        return (*self.constraints, *self.class_differences, *([self.images] if self.images else []))


def compare(expected: Golden, found: Golden, *, change: float | None = None) -> Comparison:
    """Return the verdict on ``found``, which ran in the numeric class of ``expected``.

    change: the per-token change that has to be seen with 99 %; a golden too small for it is not comparable.
    """
    unlike = _unlike(expected, found)
    if unlike:
        return Comparison(verdict=Verdict.NOT_COMPARABLE, reason=Reason.SUITE, detail=unlike)
    tables = count_differences(expected, found)
    tokenizer = tokenizer_difference(expected, found)
    if tokenizer:
        detail = f"the tokenizer or template differs: {tokenizer.prompt}, first at id {tokenizer.position}"
        return Comparison(
            verdict=Verdict.NOT_COMPARABLE,
            reason=Reason.TOKENIZER,
            detail=detail,
            levels=tables.levels,
            tokenizer=tokenizer,
        )
    unlike = _fed_otherwise(expected, found)
    if unlike:
        return Comparison(verdict=Verdict.NOT_COMPARABLE, reason=Reason.SUITE, detail=unlike)
    if has_nonfinite(found.completions):
        return _told(tables, Verdict.MISMATCH, Reason.UNSTABLE, "a log-probability is NaN or infinite")
    needed = 0 if change is None else needed_trials(change)
    if expected.token_count < needed:
        detail = (
            f"the golden has {expected.token_count} tokens; {needed} see a per-token change of {change:g}"
        )
        return _told(tables, Verdict.NOT_COMPARABLE, Reason.POWER, detail)
    return _judge(expected, found, tables)


def compare_repeat(first: Golden, again: Golden) -> Comparison:
    """Return whether a run agrees with itself; any difference is the mismatch ``unstable``."""
    comparison = compare(first, again)
    if comparison.verdict is Verdict.MATCH:
        return comparison
    detail = f"the image disagrees with itself in a new container: {comparison.detail}"
    return msgspec.structs.replace(
        comparison, verdict=Verdict.MISMATCH, reason=Reason.UNSTABLE, detail=detail
    )


def not_comparable_class(differences: tuple[tuple[str, Any, Any], ...]) -> Comparison:
    """Return the verdict where the numeric class differs; ``differences`` come from ``class_differences``."""
    fields = ", ".join(field for field, _, _ in differences)
    return Comparison(
        verdict=Verdict.NOT_COMPARABLE,
        reason=Reason.CLASS,
        detail=f"the numeric class differs: {fields}",
        class_differences=tuple(FieldDifference(field=f, expected=a, found=b) for f, a, b in differences),
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
        same = "the answers are equal all the same" if _all_equal(rows) else "and the answers differ"
        detail = f"{tables.weights.differing} of {tables.weights.tensors} loaded tensors differ, {same}"
        return _told(tables, Verdict.MISMATCH, Reason.WEIGHTS, detail)
    if _all_equal(rows):
        detail = f"every level is equal over {len(rows)} prompts and {expected.token_count} tokens"
        return _told(tables, Verdict.MATCH, None, detail)
    if _is_sampling(expected, found, rows):
        detail = "the model computes the same and draws other tokens"
        return _told(tables, Verdict.MISMATCH, Reason.SAMPLING, detail)
    if _is_other_model(rows):
        detail = "most prompts part at once, where the model was sure"
        return _told(tables, Verdict.MISMATCH, Reason.MODEL, detail)
    if all(row.equal["H1"] for row in rows):
        return _told(tables, Verdict.MISMATCH, Reason.NUMERIC, "tokens same, bits differ")
    return _told(tables, Verdict.MISMATCH, Reason.NUMERIC, "tokens and bits differ")


def _all_equal(rows: Sequence[PromptRow]) -> bool:
    return all(all(row.equal.values()) for row in rows)


def _is_sampling(expected: Golden, found: Golden, rows: tuple[PromptRow, ...]) -> bool:
    """Return whether only the drawing of tokens differs.

    That is: greedy prompts are equal at every level and sampled ones are not, or every prompt that parts
    does so between equal log-probabilities.
    """
    own = [row for row in rows if not row.replay]
    prompts = [prompt for lane in expected.request.lanes for prompt in lane.prompts]
    greedy = {prompt.id for prompt in prompts if prompt.sampling.temperature == 0}
    if greedy and _all_equal([row for row in own if row.id in greedy]) and not _all_equal(own):
        return True
    parted = [row for row in own if row.divergence]
    if not parted or not _all_equal([row for row in own if not row.divergence]):
        return False
    sides = {ours.id: (ours, theirs) for ours, theirs in line_up(expected, found)}
    return all(_same_odds(*sides[row.id], row=row, top_k=expected.request.top_k) for row in parted)


def _same_odds(expected: Completion, found: Completion, *, row: PromptRow, top_k: int) -> bool:
    """Return whether the likeliest tokens and their log-probabilities are bit-equal where the row parts."""
    position, width = row.divergence.position if row.divergence else 0, 4 * (1 + top_k)
    ids = slice(4 * top_k * position, 4 * top_k * (position + 1))
    odds = slice(width * position + 4, width * (position + 1))
    return (
        row.first_bit_difference == position
        and expected.topk_ids[ids] == found.topk_ids[ids]
        and expected.logprobs[odds] == found.logprobs[odds]
    )


def _is_other_model(rows: tuple[PromptRow, ...]) -> bool:
    own = [row for row in rows if not row.replay]
    early = [row.divergence for row in own if row.divergence and row.divergence.position < _EARLY_TOKENS]
    margins = [d.expected.margin_nats for d in early if d.expected.margin_nats is not None]
    return 2 * len(early) > len(own) and bool(margins) and median(margins) > _SURE_NATS


def _first(rows: tuple[PromptRow, ...]) -> PromptRow | None:
    parted = [row for row in rows if row.divergence]
    own = [row for row in parted if not row.replay]
    changed = [row for row in rows if row.first_bit_difference is not None or not all(row.equal.values())]
    return next(iter([*own, *parted, *changed]), None)


def _unlike(expected: Golden, found: Golden) -> str | None:
    """Return why the two suites differ, or None. Sampling settings may differ: they are a subject."""
    ours, theirs = ([(c.id, c.lane) for c in golden.completions] for golden in (expected, found))
    if ours != theirs:
        return f"the suites differ: {len(ours)} prompts expected, {len(theirs)} found, or others"
    if expected.request.top_k != found.request.top_k:
        return f"the suites differ: top {expected.request.top_k} expected, top {found.request.top_k} found"
    return None


def _fed_otherwise(expected: Golden, found: Golden) -> str | None:
    """Return why the two were fed other token ids although they tokenise alike, or None."""
    for ours, theirs in line_up(expected, found):
        if not is_replay(expected, ours) and ours.prompt_ids != theirs.prompt_ids:
            return f"the suites differ: other token ids were fed, first in {ours.id}"
    return None
