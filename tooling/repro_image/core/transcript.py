"""Two goldens -> what a reader wants to see of them: the texts where they part, and how sure the model was.

Bounded, so that a report of any suite stays small: what is left out is counted.
"""

from collections.abc import Sequence
from itertools import chain

import msgspec

from repro_image.core.differences import PromptRow
from repro_image.core.golden import Completion, Golden, Prompt, unpack_floats, unpack_ids

MAX_PROMPTS = 24
MAX_CHARACTERS_ASKED = 1000
MAX_CHARACTERS_BEFORE = 3000
MAX_CHARACTERS_AFTER = 800
MAX_CHARACTERS_TOKEN = 240

# In nats; the first bin is exactly zero, a tie. Half-precision logits differ by powers of two.
_MARGIN_EDGES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """How one side goes on where the two part. Texts are as the model wrote them, unescaped.

    token:    the first token that differs; None where the answer ended before.
    rest:     what follows it.
    left_out: tokens after ``rest``.
    """

    token: str | None
    rest: str
    left_out: int


class Transcript(msgspec.Struct, frozen=True, kw_only=True):
    """Both answers to one prompt that parts.

    asked:    the prompt, for readers.
    position: of the first differing token, from 0, prompt excluded.
    shared:   what both wrote before it, without its first ``left_out`` tokens.
    margins:  in nats, how far the expected side's likeliest token led, from token ``left_out`` on.
    """

    id: str
    asked: str
    position: int
    left_out: int
    shared: str
    expected: Side
    found: Side
    margins: tuple[float, ...]


class MarginBin(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens whose margin is at least ``low`` and below ``high``, and how many of them flipped.

    From 0 to 0: ties. high: None in the last bin, which has no end.
    """

    low: float
    high: float | None
    tokens: int
    flips: int


class Transcripts(msgspec.Struct, frozen=True, kw_only=True):
    """What a report shows of two goldens beside their comparison.

    left_out: prompts that part and are not in ``prompts``.
    margins:  of the recorded tokens that both sides reached alike; generated ones, no replays.
    """

    prompts: tuple[Transcript, ...]
    left_out: int
    margins: tuple[MarginBin, ...]


def transcripts(expected: Golden, found: Golden, rows: Sequence[PromptRow]) -> Transcripts:
    """Return the texts of the first prompts that part.

    rows: of the comparison of the two; prompts that one side was not asked have none.
    """
    theirs = {completion.id: completion for completion in found.completions}
    sides = {ours.id: (ours, theirs[ours.id]) for ours in expected.completions if ours.id in theirs}
    asked = {prompt.id: prompt for lane in expected.request.lanes for prompt in lane.prompts}
    own = [row for row in rows if not row.replay]
    parted = [row for row in own if row.divergence]
    return Transcripts(
        prompts=tuple(
            _transcript(expected, found, *sides[row.id], asked[row.id], row.divergence.position)
            for row in parted[:MAX_PROMPTS]
            if row.divergence
        ),
        left_out=max(0, len(parted) - MAX_PROMPTS),
        margins=_margin_bins([(row, _margins(expected, sides[row.id][0])) for row in own]),
    )


def _transcript(
    expected: Golden, found: Golden, ours: Completion, theirs: Completion, prompt: Prompt, position: int
) -> Transcript:
    written = _texts(expected, ours)
    shared = _fitting(written[:position][::-1], MAX_CHARACTERS_BEFORE)[::-1]
    side = _side(written[position:])
    start, end = position - len(shared), len(written) - side.left_out
    return Transcript(
        id=ours.id,
        asked=_asked(prompt),
        position=position,
        left_out=start,
        shared="".join(shared),
        expected=side,
        found=_side(_texts(found, theirs)[position:]),
        margins=tuple(_margins(expected, ours)[start:end]),
    )


def _side(written: list[str]) -> Side:
    rest = _fitting(written[1:], MAX_CHARACTERS_AFTER)
    return Side(
        token=written[0] if written else None,
        rest="".join(rest),
        left_out=max(0, len(written) - 1 - len(rest)),
    )


def _texts(golden: Golden, completion: Completion) -> list[str]:
    ids = unpack_ids(completion.output_ids)
    return [shortened(golden.vocabulary.get(str(token), "")) for token in ids]


def _fitting(texts: list[str], characters: int) -> list[str]:
    """Return as many of ``texts``, from the first on, as fit; an empty one counts as a character."""
    for number, text in enumerate(texts):
        characters -= max(1, len(text))
        if characters < 0:
            return texts[:number]
    return texts


def _asked(prompt: Prompt) -> str:
    if prompt.text is not None:
        return shortened(prompt.text, MAX_CHARACTERS_ASKED)
    if prompt.chat is not None:
        told = "\n".join(f"{message.role}: {message.content}" for message in prompt.chat)
        return shortened(told, MAX_CHARACTERS_ASKED)
    return f"{len(prompt.token_ids or ())} token ids"


def shortened(text: str, characters: int = MAX_CHARACTERS_TOKEN) -> str:
    """Return ``text``, or as many of its characters and how many are left out."""
    left_out = len(text) - characters
    return text if left_out <= 0 else f"{text[:characters]}… {left_out} characters more"


def _margins(golden: Golden, completion: Completion) -> list[float]:
    """Return by how many nats the likeliest token led, at each token."""
    width = 1 + golden.request.top_k
    odds = unpack_floats(completion.logprobs)
    return [a - b for a, b in zip(odds[1::width], odds[2::width], strict=True)] if width > 2 else []


def _margin_bins(answers: list[tuple[PromptRow, list[float]]]) -> tuple[MarginBin, ...]:
    """Return the bins, none where nothing parts: each token counts up to the first that differs, with it."""
    flips = [margins[row.divergence.position :][:1] for row, margins in answers if row.divergence]
    if not flips:
        return ()
    reached = [m if row.divergence is None else m[: row.divergence.position + 1] for row, m in answers]
    tokens, flipped = (_counts(list(chain.from_iterable(part))) for part in (reached, flips))
    edges = [(0.0, 0.0), *zip(_MARGIN_EDGES, (*_MARGIN_EDGES[1:], None), strict=True)]
    return tuple(
        MarginBin(low=low, high=high, tokens=tokens[number], flips=flipped[number])
        for number, (low, high) in enumerate(edges)
    )


def _counts(margins: list[float]) -> list[int]:
    """Return how many ``margins`` fall into each bin; NaN falls into the last one."""
    counts = [0] * (1 + len(_MARGIN_EDGES))
    for margin in margins:
        counts[sum(not margin < edge for edge in _MARGIN_EDGES) if margin else 0] += 1
    return counts
