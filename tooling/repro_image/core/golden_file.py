"""The stored form of a golden: a line of JSON that says what is in the file, then packed columns.

The line names every column with its codec and size, in order. Nothing is rounded: what is read back has every
bit.
What is read is packed again and has to come out as the same bytes, so one golden has one stored form.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec.structs import replace

from repro_image.core.answer_columns import COLUMNS, Answer, AnswerColumns, packed_answers
from repro_image.core.bits import Bits, Bytes, packed_bits, packed_varints
from repro_image.core.canonical import canonical_json
from repro_image.core.golden import (
    Completion,
    Golden,
    GoldenRequest,
    Levels,
    expected_completions,
    has_nonfinite,
    levels,
    pack_ids,
    unpack_ids,
    wrong_shape,
)
from repro_image.core.reference import sha256_digest
from repro_image.core.text_columns import packed_texts, packed_weights, read_texts, read_weights
from repro_image.errors import InvalidFileError

FORMAT = 2
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Width: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=31)]
# More than any suite asks: a small file that claims more is refused before memory is.
_MOST_IDS = 2**22

_CODECS = {
    "ids": "every id of an answer, ascending: varints of the differences",
    "texts": "text per id: varint 0 for none, else 1 + size, for all; then UTF-8",
    "weights": "per name, sorted: varints of shared prefix, rest and 2 * checksum + is hex; rest; checksum",
    "sequences": "ids of tokenized and fed prompts: id_bits.prompt bits each",
    "alternatives": "top_k indices into ids per token: id_bits.answer bits each",
    "chosen": "place among the alternatives, top_k for none of them; of own outputs",
    "beyond": "index into ids of a chosen token that is no alternative: id_bits.answer bits",
    "form": "4 bits per token: e of the grid 2**-e; 14 whole, 15 whole and chosen",
    "first": "float32 log-probability of the first alternative",
    "steps": "per token on a grid: 5 bits of width, then steps of 2**-e below the value before",
    "whole": "float32 of what is on no grid",
}


class _Column(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    codec: str
    size_bytes: Count


class _IdBits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bits of one id: of a prompt, the id itself; of an answer, its index."""

    prompt: Width
    answer: Width


class _Completions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry per completion, in the order of the request.

    tokens:           of its answer.
    same_answer_as, same_output_as: the first completion whose whole answer, or output ids, are the same;
                      itself for new ones.
    tokenized, fed:   which of the sequences.
    """

    tokens: tuple[Count, ...]
    same_answer_as: tuple[Count, ...]
    same_output_as: tuple[Count, ...]
    tokenized: tuple[Count, ...]
    fed: tuple[Count, ...]
    finish_reason: tuple[str, ...]


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file holds. request: the one number in a prompt's token_ids says which of the sequences they
    are.
    """

    format: Literal[2] = 2
    request: GoldenRequest
    canaries: dict[str, str]
    levels: Levels
    completions: _Completions
    sequence_lengths: tuple[Count, ...]
    id_bits: _IdBits
    columns: tuple[_Column, ...]


def golden_bytes(golden: Golden) -> bytes:
    """Return the stored form of ``golden``, before compression; its sha256 is the golden's digest.

    Raises: ValueError for what is no golden: completions that do not fit the request, NaN, infinity.
    """
    reason = wrong_shape(golden.request, golden.completions)
    if reason or has_nonfinite(golden.completions):
        raise ValueError(reason or "a log-probability is not a finite number")
    ids = _ids(golden)
    sequences = _Sequences()
    request = _with_ids(golden.request, lambda token_ids: (sequences.add(token_ids),))
    completions = _completions(golden, sequences)
    widths = _IdBits(
        prompt=max((max(one, default=0) for one in sequences.all), default=0).bit_length(),
        answer=(len(ids) - 1).bit_length(),
    )
    columns = {
        "ids": packed_varints(b - a for a, b in pairwise([0, *ids])),
        "texts": packed_texts([golden.vocabulary.get(str(number)) for number in ids]),
        "weights": packed_weights(golden.weights),
        "sequences": packed_bits((number, widths.prompt) for one in sequences.all for number in one),
        **packed_answers(
            list(_own_answers(golden, completions, ids)), top_k=golden.request.top_k, id_bits=widths.answer
        ),
    }
    header = _Header(
        request=request,
        canaries=golden.canaries,
        levels=levels(golden),
        completions=completions,
        sequence_lengths=tuple(len(one) for one in sequences.all),
        id_bits=widths,
        columns=tuple(
            _Column(name=name, codec=_CODECS[name], size_bytes=len(data)) for name, data in columns.items()
        ),
    )
    return b"".join((canonical_json(header), b"\n", *columns.values()))


def golden_digest(golden: Golden) -> str:
    return sha256_digest(golden_bytes(golden))


def _ids(golden: Golden) -> list[int]:
    answered = {
        i for c in golden.completions for part in (c.output_ids, c.topk_ids) for i in unpack_ids(part)
    }
    return sorted(answered | {int(number) for number in golden.vocabulary})


class _Sequences:
    """Lists of prompt ids, each of which is kept once."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}

    def add(self, ids: tuple[int, ...]) -> int:
        return self._places.setdefault(ids, len(self._places))

    @property
    def all(self) -> tuple[tuple[int, ...], ...]:
        return tuple(self._places)


def _with_ids(request: GoldenRequest, changed: Callable[[tuple[int, ...]], tuple[int, ...]]) -> GoldenRequest:
    """Return ``request`` with other ids in every prompt that has some."""
    lanes = (
        replace(
            lane,
            prompts=tuple(
                prompt if prompt.token_ids is None else replace(prompt, token_ids=changed(prompt.token_ids))
                for prompt in lane.prompts
            ),
        )
        for lane in request.lanes
    )
    return replace(request, lanes=tuple(lanes))


def _completions(golden: Golden, sequences: _Sequences) -> _Completions:
    answers: dict[tuple[bytes, ...], int] = {}
    outputs: dict[bytes, int] = {}
    found = golden.completions
    return _Completions(
        tokens=tuple(len(c.output_ids) // 4 for c in found),
        same_answer_as=tuple(
            answers.setdefault((c.output_ids, c.topk_ids, c.logprobs), n) for n, c in enumerate(found)
        ),
        same_output_as=tuple(outputs.setdefault(c.output_ids, n) for n, c in enumerate(found)),
        tokenized=tuple(sequences.add(unpack_ids(c.tokenized)) for c in found),
        fed=tuple(sequences.add(unpack_ids(c.prompt_ids)) for c in found),
        finish_reason=tuple(c.finish_reason for c in found),
    )


def _own_answers(
    golden: Golden, completions: _Completions, ids: Sequence[int]
) -> Iterator[tuple[Answer, bool]]:
    """Yield each answer that none before it equals, and whether its output ids are those of one before it."""
    index = {number: place for place, number in enumerate(ids)}
    for number, completion in enumerate(golden.completions):
        if completions.same_answer_as[number] == number:
            answer = Answer(
                output=tuple(index[i] for i in unpack_ids(completion.output_ids)),
                alternatives=tuple(index[i] for i in unpack_ids(completion.topk_ids)),
                logprobs=completion.logprobs,
            )
            yield answer, completions.same_output_as[number] != number


def parse_golden(data: bytes, *, path: str) -> Golden:
    """Return the golden that ``data`` (uncompressed) holds.

    Raises: InvalidFileError for a wrong form or count, NaN, or answers that do not fit the digests per level.
    """
    try:
        line, _, rest = data.partition(b"\n")
        golden = _golden(msgspec.json.decode(line, type=_Header), rest)
        if golden_bytes(golden) != data:
            raise ValueError("its parts do not fit each other")
    except (msgspec.DecodeError, ValueError, IndexError) as error:
        fix = "restore the file from git; goldens are never edited"
        raise InvalidFileError(f"not a golden: {error}", path=path, fix=fix) from error
    return golden


def _golden(header: _Header, rest: bytes) -> Golden:
    columns = _columns(header, rest)
    ids = tuple(accumulate(_varints(columns["ids"])))
    sequences = _sequences(header, columns["sequences"])
    return Golden(
        request=_with_ids(header.request, lambda number: sequences[number[0]]),
        completions=tuple(_read_completions(header, columns, ids, sequences)),
        vocabulary=dict(read_texts(columns["texts"], ids)),
        weights=dict(read_weights(columns["weights"])),
        canaries=header.canaries,
    )


def _columns(header: _Header, rest: bytes) -> dict[str, bytes]:
    if [column.name for column in header.columns] != list(_CODECS):
        raise ValueError("other columns than this version knows")
    reader = Bytes(rest)
    columns = {column.name: reader.take(column.size_bytes) for column in header.columns}
    if not reader.is_at_end:
        raise ValueError("there is more after the last column")
    return columns


def _varints(data: bytes) -> Iterator[int]:
    reader = Bytes(data)
    while not reader.is_at_end:
        yield reader.varint()


def _sequences(header: _Header, data: bytes) -> list[tuple[int, ...]]:
    lengths, bits, width = header.sequence_lengths, Bits(data), header.id_bits.prompt
    _refuse_too_many(sum(lengths))
    return [tuple(bits.take(width) for _ in range(length)) for length in lengths]


def _refuse_too_many(count: int) -> None:
    if count > _MOST_IDS:
        raise ValueError(f"{count} ids, more than {_MOST_IDS}")


def _read_completions(
    header: _Header, columns: dict[str, bytes], ids: Sequence[int], sequences: Sequence[tuple[int, ...]]
) -> list[Completion]:
    asked, top_k, told = expected_completions(header.request), header.request.top_k, header.completions
    _refuse_too_many(sum(told.tokens) + sum(len(sequences[place]) for place in (*told.tokenized, *told.fed)))
    reader = AnswerColumns(
        {name: columns[name] for name in COLUMNS}, top_k=top_k, id_bits=header.id_bits.answer
    )
    answers: list[Answer] = []
    completions: list[Completion] = []
    for number, (name, lane) in enumerate(asked):
        if told.same_answer_as[number] != number:
            answer = answers[told.same_answer_as[number]]
        else:
            same = told.same_output_as[number]
            known = answers[same].output if same != number else None
            answer = reader.read(told.tokens[number], known=known)
        answers.append(answer)
        completions.append(
            Completion(
                id=name,
                lane=lane,
                tokenized=pack_ids(sequences[told.tokenized[number]]),
                prompt_ids=pack_ids(sequences[told.fed[number]]),
                output_ids=pack_ids([ids[place] for place in answer.output]),
                topk_ids=pack_ids([ids[place] for place in answer.alternatives]),
                logprobs=answer.logprobs,
                finish_reason=told.finish_reason[number],
            )
        )
    return completions
