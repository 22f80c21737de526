"""Where and by how much two goldens differ: per level, prompt and token, and in the weights. No verdicts."""

import math
from statistics import median

import msgspec

from repro_image.core.epoch import Power
from repro_image.core.golden import LEVELS, Completion, Golden, unpack_floats, unpack_ids
from repro_image.core.intervals import clopper_pearson, power, smallest_visible_change
from repro_image.core.odds import ReplayStep, first_difference, logit_ulp, replay_steps

_FIRST_NAMES = 5


class Token(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One side's token.

    id:          None past the end of a shorter answer.
    text:        as the model wrote it, unescaped.
    margin_nats: log-probability of the most likely token minus that of the second; None unless finite.
    margin_ulps: the same in units in the last place of the logits (``Differences.ulp_nats``).
    """

    id: int | None
    text: str
    margin_nats: float | None
    margin_ulps: float | None


class Divergence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first position (from 0, prompt excluded) where the token ids differ, with both tokens."""

    position: int
    expected: Token
    found: Token


class PromptRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prompt on both sides.

    tokens:    how many were expected.
    replay:    whether the tokens were fed back instead of generated.
    equal:     level -> whether the prompt is equal at it.
    first_bit_difference: first position whose log-probabilities differ in any bit, or None.
    """

    id: str
    lane: str
    tokens: int
    replay: bool
    equal: dict[str, bool]
    divergence: Divergence | None
    first_bit_difference: int | None


class LevelRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One level over all prompts."""

    level: str
    equal: bool
    prompts: int
    differing: int


class Rate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """events of trials, with the exact 95 % interval (Clopper-Pearson)."""

    events: int
    trials: int
    low: float
    high: float


class Decade(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many differences d have 10**exponent <= d < 10**(exponent + 1); exponent None: exactly zero."""

    exponent: int | None
    count: int


class Differences(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Absolute differences of the chosen token's log-probability where both sides read and chose the same.

    decades:     in nats.
    ulp_decades: in ulps.
    ulp_nats:    one unit in the last place of the recorded logits: the step of their type where the likely
                 ones lie, 0.125 nats for bfloat16 between 16 and 32.
    """

    decades: tuple[Decade, ...]
    ulp_decades: tuple[Decade, ...]
    ulp_nats: float
    median_nats: float | None
    largest_nats: float | None


class WeightDifferences(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tensors whose checksum differs or that one side lacks. names: the first few, sorted."""

    differing: int
    tensors: int
    names: tuple[str, ...]


class TokenizerDifference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first prompt, and the first position in it, that the two sides tokenise differently."""

    prompt: str
    position: int
    expected: int | None
    found: int | None


class Visible(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the golden can see: the smallest changes that it finds with ``power.confidence``.

    sees_per_prompt: the same with prompts as clusters: a change of each prompt with this probability.
    """

    power: Power
    sees_per_prompt: float


class Tables(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that can be counted about two goldens that answer the same prompts, before judging them."""

    levels: tuple[LevelRow, ...]
    prompts: tuple[PromptRow, ...]
    flips: Rate
    replay_flips: Rate | None
    differences: Differences
    weights: WeightDifferences | None
    visible: Visible


def line_up(expected: Golden, found: Golden) -> list[tuple[Completion, Completion]]:
    """Return both answers to each prompt, in order."""
    return list(zip(expected.completions, found.completions, strict=True))


def is_replay(golden: Golden, completion: Completion) -> bool:
    return any(lane.replay_of for lane in golden.request.lanes if lane.name == completion.lane)


def replayed_tokens(golden: Golden) -> int:
    return sum(len(c.output_ids) // 4 for c in golden.completions if is_replay(golden, c))


def replayed_steps(expected: Golden, found: Golden) -> list[ReplayStep]:
    """Return each step of every replay, as far as both sides were fed the same tokens."""
    pairs = [pair for pair in line_up(expected, found) if is_replay(expected, pair[0])]
    return [step for pair in pairs for step in replay_steps(*pair, top_k=expected.request.top_k)]


def tokenizer_difference(expected: Golden, found: Golden) -> TokenizerDifference | None:
    """Return where level H0 first differs, or None."""
    for a, b in line_up(expected, found):
        ours, theirs = unpack_ids(a.tokenized), unpack_ids(b.tokenized)
        position = first_difference(ours, theirs)
        if position is not None:
            return TokenizerDifference(
                prompt=a.id, position=position, expected=_at(ours, position), found=_at(theirs, position)
            )
    return None


def _at(ids: tuple[int, ...], position: int) -> int | None:
    return ids[position] if position < len(ids) else None


def count_differences(expected: Golden, found: Golden) -> Tables:
    """Return the tables of two goldens; their completions line up."""
    pairs, ulp = line_up(expected, found), logit_ulp(expected)
    rows = tuple(_row(expected, found, a, b, ulp=ulp) for a, b in pairs)
    own = [row for row in rows if not row.replay]
    trials = sum(row.tokens if row.divergence is None else row.divergence.position + 1 for row in own)
    return Tables(
        levels=tuple(_level(level, rows) for level in LEVELS),
        prompts=rows,
        flips=rate_of(sum(row.divergence is not None for row in own), trials),
        replay_flips=_flips(replayed_steps(expected, found)) if any(row.replay for row in rows) else None,
        differences=_differences(pairs, rows, width=1 + expected.request.top_k, ulp=ulp),
        weights=weight_differences(expected.weights, found.weights),
        visible=visible(expected),
    )


def visible(golden: Golden) -> Visible:
    """Return what a comparison with ``golden`` can see; replayed tokens do not count."""
    prompts = sum(not is_replay(golden, completion) for completion in golden.completions)
    return Visible(
        power=power(tokens=golden.token_count, prompts=prompts),
        sees_per_prompt=smallest_visible_change(prompts),
    )


def _level(level: str, rows: tuple[PromptRow, ...]) -> LevelRow:
    differing = sum(not row.equal[level] for row in rows)
    return LevelRow(level=level, equal=differing == 0, prompts=len(rows), differing=differing)


def _row(expected: Golden, found: Golden, ours: Completion, theirs: Completion, *, ulp: float) -> PromptRow:
    ids, other = unpack_ids(ours.output_ids), unpack_ids(theirs.output_ids)
    position = first_difference(ids, other)
    divergence = None
    if position is not None:
        divergence = Divergence(
            position=position,
            expected=_token(expected, ours, position, ulp),
            found=_token(found, theirs, position, ulp),
        )
    return PromptRow(
        id=ours.id,
        lane=ours.lane,
        tokens=len(ids),
        replay=is_replay(expected, ours),
        equal={
            "H0": ours.tokenized == theirs.tokenized,
            "H1": ours.output_ids == theirs.output_ids,
            "H2": ours.topk_ids == theirs.topk_ids,
            "H3": ours.logprobs == theirs.logprobs,
        },
        divergence=divergence,
        first_bit_difference=_first_bit_difference(
            ours.logprobs, theirs.logprobs, 4 * (1 + expected.request.top_k)
        ),
    )


def _first_bit_difference(ours: bytes, theirs: bytes, width: int) -> int | None:
    if ours == theirs:
        return None
    starts = range(0, max(len(ours), len(theirs)), width)
    return next(
        start // width for start in starts if ours[start : start + width] != theirs[start : start + width]
    )


def _token(golden: Golden, completion: Completion, position: int, ulp: float) -> Token:
    token = _at(unpack_ids(completion.output_ids), position)
    width = 4 * (1 + golden.request.top_k)
    values = unpack_floats(completion.logprobs[width * position : width * (position + 1)])
    nats = values[1] - values[2] if len(values) > 2 else math.nan
    finite = math.isfinite(nats)
    return Token(
        id=token,
        text=golden.vocabulary.get(str(token), ""),
        margin_nats=nats if finite else None,
        margin_ulps=nats / ulp if finite else None,
    )


def rate_of(events: int, trials: int) -> Rate:
    low, high = clopper_pearson(events, trials)
    return Rate(events=events, trials=trials, low=low, high=high)


def _flips(steps: list[ReplayStep]) -> Rate:
    """Return how often the most likely token differs."""
    return rate_of(sum(step.margin_nats is not None for step in steps), len(steps))


def _differences(
    pairs: list[tuple[Completion, Completion]], rows: tuple[PromptRow, ...], *, width: int, ulp: float
) -> Differences:
    nats: list[float] = []
    for (ours, theirs), row in zip(pairs, rows, strict=True):
        count = row.tokens if row.divergence is None else row.divergence.position
        chosen = [unpack_floats(side.logprobs)[::width][:count] for side in (ours, theirs)]
        nats += [abs(a - b) for a, b in zip(*chosen, strict=True)]
    finite = [value for value in nats if math.isfinite(value)]
    return Differences(
        decades=_decades(finite),
        ulp_decades=_decades([value / ulp for value in finite]),
        ulp_nats=ulp,
        median_nats=median(finite) if finite else None,
        largest_nats=max(finite, default=None),
    )


def _decades(values: list[float]) -> tuple[Decade, ...]:
    counts: dict[int | None, int] = {}
    for value in values:
        exponent = math.floor(math.log10(value)) if value else None
        counts[exponent] = counts.get(exponent, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -1000 if item[0] is None else item[0])
    return tuple(Decade(exponent=exponent, count=count) for exponent, count in ordered)


def are_untold(expected: dict[str, str], found: dict[str, str]) -> bool:
    """Return whether no tensor has the same name on both sides: parallel engines name them by rank."""
    return bool(expected and found) and expected.keys().isdisjoint(found)


def weight_differences(expected: dict[str, str], found: dict[str, str]) -> WeightDifferences | None:
    """Return the loaded tensors that differ, or None when all are equal or nothing can be told."""
    if are_untold(expected, found):
        return None
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if not names:
        return None
    tensors = len(expected.keys() | found.keys())
    return WeightDifferences(differing=len(names), tensors=tensors, names=tuple(names[:_FIRST_NAMES]))
