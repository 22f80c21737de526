"""Why two goldens differ, read off the answers: the rules behind the reasons of a mismatch."""

from collections.abc import Sequence
from statistics import median

from repro_image.core.differences import PromptRow, is_replay, line_up
from repro_image.core.golden import Completion, Golden

# The rule for "another model": most prompts part at once, at places where the model was sure.
_EARLY_TOKENS = 3
_SURE_NATS = 1.0


def all_equal(rows: Sequence[PromptRow]) -> bool:
    return all(all(row.equal.values()) for row in rows)


def is_sampling(expected: Golden, found: Golden, rows: tuple[PromptRow, ...]) -> bool:
    """Return whether only the drawing of tokens differs.

    That is: greedy prompts are equal at every level and sampled ones are not, or every prompt that parts
    does so between equal log-probabilities.
    """
    own = [row for row in rows if not row.replay]
    prompts = [prompt for lane in expected.request.lanes for prompt in lane.prompts]
    greedy = {prompt.id for prompt in prompts if prompt.sampling.temperature == 0}
    draws_others = any(not row.equal["H1"] for row in own)
    if greedy and draws_others and all_equal([row for row in own if row.id in greedy]):
        return True
    parted = [row for row in own if row.divergence]
    if not parted or not all_equal([row for row in own if not row.divergence]):
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


def is_other_model(rows: tuple[PromptRow, ...]) -> bool:
    own = [row for row in rows if not row.replay]
    early = [row.divergence for row in own if row.divergence and row.divergence.position < _EARLY_TOKENS]
    margins = [d.expected.margin_nats for d in early if d.expected.margin_nats is not None]
    return 2 * len(early) > len(own) and bool(margins) and median(margins) > _SURE_NATS


def unlike(expected: Golden, found: Golden) -> str | None:
    """Return why the two suites differ, or None. Sampling settings may differ: they are a subject."""
    ours, theirs = ([(c.id, c.lane) for c in golden.completions] for golden in (expected, found))
    if ours != theirs:
        return f"the suites differ: {len(ours)} prompts expected, {len(theirs)} found, or others"
    if expected.request.top_k != found.request.top_k:
        return f"the suites differ: top {expected.request.top_k} expected, top {found.request.top_k} found"
    return None


def fed_otherwise(expected: Golden, found: Golden) -> str | None:
    """Return why the two were fed other token ids although they tokenise alike, or None."""
    for ours, theirs in line_up(expected, found):
        if not is_replay(expected, ours) and ours.prompt_ids != theirs.prompt_ids:
            return f"the suites differ: other token ids were fed, first in {ours.id}"
    return None
