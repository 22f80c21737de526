"""Answers packed into columns: output ids, alternatives and float32 bits of the log-probabilities.

A model in bfloat16 or float16 has logits on a grid, so that a log-probability is that of the likeliest token
minus
a whole number of steps of 2**-e, rounded to float32. Where the packed steps do not give back every bit, a row
keeps its bytes: nothing is ever rounded.
"""

import math
import struct
from collections.abc import Iterator, Sequence

import msgspec

from repro_image.core.bits import Bits, Bytes, packed_bits

COLUMNS = ("alternatives", "chosen", "beyond", "form", "first", "steps", "whole")
# Forms of a row: up to here an exponent e of the grid, above it the bytes themselves.
_FINEST, _WHOLE, _WHOLE_AND_CHOSEN = 13, 14, 15
_FORM_BITS, _WIDTH_BITS = 4, 5
_WIDEST = 2**_WIDTH_BITS - 1


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One completion's answer, ids as indices into the table of ids.

    output:       one per token.
    alternatives: top_k per token, most likely first.
    logprobs:     float32, the chosen token's first, then the alternatives'.
    """

    output: tuple[int, ...]
    alternatives: tuple[int, ...]
    logprobs: bytes


def packed_answers(answers: Sequence[tuple[Answer, bool]], *, top_k: int, id_bits: int) -> dict[str, bytes]:
    """Return COLUMNS of ``answers``, each with whether its output is known from elsewhere."""
    ids: list[tuple[int, int]] = []
    chosen: list[tuple[int, int]] = []
    beyond: list[tuple[int, int]] = []
    form: list[tuple[int, int]] = []
    steps: list[tuple[int, int]] = []
    first, whole = bytearray(), bytearray()
    for answer, is_known in answers:
        for number, token in enumerate(answer.output):
            top = answer.alternatives[top_k * number : top_k * (number + 1)]
            place = top.index(token) if token in top else top_k
            row = answer.logprobs[4 * (1 + top_k) * number : 4 * (1 + top_k) * (number + 1)]
            ids += [(alternative, id_bits) for alternative in top]
            if not is_known:
                chosen.append((place, top_k.bit_length()))
                beyond += [(token, id_bits)] if place == top_k else []
            packed = _Row.of(row, place=place, top_k=top_k)
            form.append((packed.form, _FORM_BITS))
            steps += packed.steps
            first += row[4:8]
            whole += packed.whole
    return {
        "alternatives": packed_bits(ids),
        "chosen": packed_bits(chosen),
        "beyond": packed_bits(beyond),
        "form": packed_bits(form),
        "first": bytes(first),
        "steps": packed_bits(steps),
        "whole": bytes(whole),
    }


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """One token's log-probabilities beside the first. steps: (number, width) pairs; whole: bytes."""

    form: int
    steps: list[tuple[int, int]] = msgspec.field(default_factory=list)
    whole: bytes = b""

    @classmethod
    def of(cls, row: bytes, *, place: int, top_k: int) -> "_Row":
        chosen, rest = row[:4], row[8:]
        if place < top_k and chosen != row[4 * (1 + place) : 4 * (2 + place)]:
            return cls(form=_WHOLE_AND_CHOSEN, whole=rest + chosen)
        others = rest if place < top_k else rest + chosen
        for exponent in range(_FINEST + 1):
            steps = _steps(row[4:8], others, exponent)
            if steps is not None:
                width = max(steps, default=0).bit_length()
                pairs = [(width, _WIDTH_BITS), *((step, width) for step in steps)]
                return cls(form=exponent, steps=pairs)
        return cls(form=_WHOLE, whole=others)


def _steps(first: bytes, others: bytes, exponent: int) -> list[int] | None:
    """Return how many steps of 2**-exponent each value lies below the one before, where that is exact."""
    (start,), values = struct.unpack("<f", first), struct.unpack(f"<{len(others) // 4}f", others)
    below = [(start - value) * 2**exponent for value in values]
    if not all(math.isfinite(number) and 0 <= number < 2**_WIDEST for number in below):
        return None
    totals = [round(number) for number in below]
    steps = [total - before for before, total in zip([0, *totals], totals, strict=False)]
    if any(step < 0 or step.bit_length() > _WIDEST for step in steps):
        return None
    return steps if _unstepped(first, steps, exponent) == others else None


def _unstepped(first: bytes, steps: Sequence[int], exponent: int) -> bytes:
    (start,) = struct.unpack("<f", first)
    values, total = [], 0
    for step in steps:
        total += step
        values.append(start - total / 2**exponent)
    return struct.pack(f"<{len(values)}f", *values)


class AnswerColumns:
    """Reads what ``packed_answers`` wrote, answer by answer."""

    def __init__(self, columns: dict[str, bytes], *, top_k: int, id_bits: int) -> None:
        self._top_k, self._id_bits = top_k, id_bits
        self._bits = {
            name: Bits(columns[name]) for name in ("alternatives", "chosen", "beyond", "form", "steps")
        }
        self._first, self._whole = Bytes(columns["first"]), Bytes(columns["whole"])

    def read(self, tokens: int, *, known: tuple[int, ...] | None) -> Answer:
        """Return the next answer. known: its output, where that is from elsewhere. Raises: ValueError."""
        output: list[int] = []
        alternatives: list[int] = []
        logprobs = bytearray()
        for number in range(tokens):
            top = tuple(self._bits["alternatives"].take(self._id_bits) for _ in range(self._top_k))
            if known is None:
                place = self._bits["chosen"].take(self._top_k.bit_length())
                token = top[place] if place < self._top_k else self._bits["beyond"].take(self._id_bits)
            else:
                token = known[number]
                place = top.index(token) if token in top else self._top_k
            output.append(token)
            alternatives += top
            logprobs += b"".join(self._row(place))
        return Answer(output=tuple(output), alternatives=tuple(alternatives), logprobs=bytes(logprobs))

    def _row(self, place: int) -> Iterator[bytes]:
        """Yield the bits of the chosen token and of the alternatives."""
        form, first = self._bits["form"].take(_FORM_BITS), self._first.take(4)
        others = 4 * (self._top_k - 1 if place < self._top_k else self._top_k)
        if form == _WHOLE_AND_CHOSEN:
            rest, chosen = self._whole.take(4 * (self._top_k - 1)), self._whole.take(4)
            yield from (chosen, first, rest)
            return
        if form == _WHOLE:
            rest = self._whole.take(others)
        else:
            width = self._bits["steps"].take(_WIDTH_BITS)
            rest = _unstepped(first, [self._bits["steps"].take(width) for _ in range(others // 4)], form)
        values = first + rest
        yield values[4 * place : 4 * place + 4]  # beyond the alternatives: the value after them
        yield values[: 4 * self._top_k]
