"""Serving: the load around the golden prompts, what the client in the container is told, and how far the
server's answers agree with a golden.
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Literal

import msgspec
from msgspec.structs import replace

from repro_image.core.derive import derive, derive63, synthetic_ids
from repro_image.core.differences import LevelRow, PromptRow, Rate, count_differences
from repro_image.core.golden import Completion, Golden, GoldenRequest
from repro_image.core.project import EngineValue

STREAMS = (0, 2, 8)
# A stream is one user: requests arrive two a second on average, and wait until the one before is answered. So
# the number of streams bounds the load, on a machine that cannot keep up and on one that can.
_RATE_PER_S = 2.0
_PROMPT_TOKENS = (16, 128)
_OUTPUT_TOKENS = (16, 64)
_REQUESTS = 64  # of each stream; then again from its first


class Arrival(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One background request, sampled at temperature 1. gap_ms: since the stream's arrival before it."""

    gap_ms: int
    prompt_ids: tuple[int, ...]
    max_tokens: int
    seed: int


class ServeInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the client in the container reads.

    nonce:      64 hex digits, returned in the output.
    request:    golden prompts with token ids, in lanes that are asked one by one.
    loads:      how many streams are active beside them, one run of all prompts each.
    background: one tuple per stream; a load of n uses the first n.
    start_s:    how long the server may take until it answers; request_s: how long for one request.
    """

    format: Literal[1] = 1
    nonce: str
    request: GoldenRequest
    loads: tuple[int, ...]
    background: tuple[tuple[Arrival, ...], ...]
    start_s: int
    request_s: int


class ServedLoad(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answers under one load. requests: background requests answered; in_flight: their mean number."""

    streams: int
    completions: tuple[Completion, ...]
    requests: int
    in_flight: float
    seconds: float


class ServeOutput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the client writes."""

    format: Literal[1] = 1
    nonce: str
    loads: tuple[ServedLoad, ...]


class LoadRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far the answers under one load agree with the golden.

    first: of the prompts that differ the first one.
    """

    streams: int
    requests: int
    in_flight: float
    seconds: float
    levels: tuple[LevelRow, ...]
    flips: Rate
    first: PromptRow | None

    @property
    def agrees(self) -> bool:
        return all(level.equal for level in self.levels)


class ServingVerdict(StrEnum):
    """MEASURED: the answers differ, and nothing promised that they would not."""

    MATCH = "match"
    MISMATCH = "mismatch"
    MEASURED = "measured"


EXIT_CODES = {ServingVerdict.MATCH: 0, ServingVerdict.MISMATCH: 10, ServingVerdict.MEASURED: 0}


class Serving(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `verify --serve` found. prompts, tokens: of the golden part that was asked."""

    verdict: ServingVerdict
    detail: str
    batch_invariant: bool
    strict: bool
    prompts: int
    tokens: int
    rows: tuple[LoadRow, ...]

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


def background(root: int, stream: int, *, longest: int) -> tuple[Arrival, ...]:
    """Return the requests of one stream: a Poisson process, every choice from named children of ``root``.

    longest: of prompt and output together that the model takes. Other streams move nothing in this one.
    """
    return tuple(
        _arrival(root, f"serve.stream.{stream}.{index}", longest=longest) for index in range(_REQUESTS)
    )


def _arrival(root: int, child: str, *, longest: int) -> Arrival:
    uniform = derive(root, f"{child}.gap") / 2**64
    length = min(_between(derive(root, f"{child}.prompt.length"), _PROMPT_TOKENS), longest // 2)
    return Arrival(
        gap_ms=round(-1000 * math.log1p(-uniform) / _RATE_PER_S),
        prompt_ids=synthetic_ids(derive(root, f"{child}.prompt.token_ids"), length),
        max_tokens=min(_between(derive(root, f"{child}.output.length"), _OUTPUT_TOKENS), longest // 2),
        seed=derive63(root, f"{child}.sampling"),
    )


def _between(number: int, ends: tuple[int, int]) -> int:
    low, high = ends
    return low + number % (high - low + 1)


def served_part(golden: Golden, *, batch_invariant: bool = False) -> Golden:
    """Return the part that a client can ask a server again: lanes asked one by one, no replay.

    batch_invariant: whether the server is; another one cannot answer as lanes that ask for it.
    Chats count by the ids that were fed: a server renders them in ways of its own, so H0 leaves them out.
    """
    lanes = tuple(
        lane
        for lane in golden.request.lanes
        if not (lane.together or lane.replay_of or (lane.batch_invariant and not batch_invariant))
    )
    texts = {prompt.id: prompt.text for lane in lanes for prompt in lane.prompts}
    return replace(
        golden,
        request=replace(golden.request, lanes=lanes),
        completions=tuple(
            c if texts[c.id] is not None else replace(c, tokenized=b"")
            for c in golden.completions
            if c.id in texts
        ),
    )


def served_engine(
    engine: Mapping[str, EngineValue], *, chosen: Mapping[str, EngineValue], loads: Sequence[int]
) -> dict[str, EngineValue]:
    """Return the settings of the server: the golden's, with room for all streams in one batch.

    chosen: what the user set on purpose, which stays.
    """
    room = max(int(engine.get("max_num_seqs", 1)), 1 + max(loads))
    return {**engine, "max_num_seqs": room, **chosen}


def server_flags(engine: Mapping[str, EngineValue]) -> list[str]:
    """Return arguments of ``vllm.LLM`` as flags of ``vllm serve``, sorted."""
    flags = []
    for key in sorted(engine):
        name, value = key.replace("_", "-"), engine[key]
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags.append(f"--{name}={value}")
    return flags


def is_batch_invariant(environment: Mapping[str, str]) -> bool:
    return environment.get("VLLM_BATCH_INVARIANT", "0") not in ("", "0")


def load_row(expected: Golden, load: ServedLoad) -> LoadRow:
    """Return how far ``load`` agrees with ``expected``, the part that was asked."""
    tables = count_differences(expected, replace(expected, completions=load.completions))
    changed = (row for row in tables.prompts if not all(row.equal.values()))
    return LoadRow(
        streams=load.streams,
        requests=load.requests,
        in_flight=load.in_flight,
        seconds=load.seconds,
        levels=tables.levels,
        flips=tables.flips,
        first=next(changed, None),
    )


def judge_serving(
    expected: Golden, loads: Sequence[ServedLoad], *, batch_invariant: bool, strict: bool
) -> Serving:
    """Return the verdict on what the server answered under each load.

    Without batch invariance vLLM promises nothing here: what differs is measured, unless ``strict``.
    """
    rows = tuple(load_row(expected, load) for load in loads)
    differing = [str(row.streams) for row in rows if not row.agrees]
    prompts = len(expected.completions)
    if not differing:
        verdict = ServingVerdict.MATCH
        detail = f"every level is equal over {prompts} prompts under every load"
    else:
        is_promised = batch_invariant or strict
        verdict = ServingVerdict.MISMATCH if is_promised else ServingVerdict.MEASURED
        detail = f"answers differ beside {' and '.join(differing)} streams"
        if not is_promised:
            detail += "; without batch invariance vLLM does not promise that they are equal"
    return Serving(
        verdict=verdict,
        detail=detail,
        batch_invariant=batch_invariant,
        strict=strict,
        prompts=prompts,
        tokens=expected.token_count,
        rows=rows,
    )
