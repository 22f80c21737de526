"""What is asked of an image (GoldenRequest) and what it answered (Golden); digests per level.

Arrays are little-endian bytes (base64 in JSON): int32 for token ids, float32 for log-probabilities. Decimal
text
would lose the bits that level H3 compares.
"""

import base64
import hashlib
import math
import sys
from array import array
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from repro_image.core.canonical import canonical_digest
from repro_image.core.project import EngineValue
from repro_image.core.reference import Digest, sha256_digest

LEVELS = ("H0", "H1", "H2", "H3")
# What vLLM takes.
Temperature: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0, le=2.0)]
TopP: TypeAlias = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
# Token ids are keys of JSON objects, so that they are text there.
Vocabulary: TypeAlias = dict[Annotated[str, msgspec.Meta(pattern=r"\A(?:0|[1-9][0-9]{0,8})\Z")], str]
_LOW_BYTES = bytes(range(128))
_COMPARED = ("tokenized", "prompt_ids", "output_ids", "topk_ids", "logprobs")


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling settings of one prompt; everything else is fixed by the runner (ignore_eos, constant
    logprobs).

    seed: 63 bits; None for greedy prompts, which draw nothing.
    """

    max_tokens: Annotated[int, msgspec.Meta(gt=0)]
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    seed: int | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn of a chat. role: as chat templates know it."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prompt: a text, a chat or token ids.

    id:        unique in the request, such as ``greedy/003``.
    chat:      rendered inside the image by the tokenizer's own chat template, up to where the answer begins.
    token_ids: with a text or chat as well, the ids are fed and the other is only tokenised.
    """

    id: str
    sampling: Sampling
    text: str | None = None
    chat: tuple[Message, ...] | None = None
    token_ids: tuple[TokenId, ...] | None = None

    def __post_init__(self) -> None:
        require_one_thing(self.text, self.chat, self.token_ids)


def require_one_thing(
    text: str | None, chat: tuple[Message, ...] | None, token_ids: tuple[int, ...] | None
) -> None:
    """Raise ValueError for a prompt that asks nothing, or a text and a chat."""
    if text is not None and chat is not None:
        raise ValueError("a prompt is a text or a chat, not both")
    if text is None and not chat and not token_ids:
        raise ValueError("a prompt needs a text, a chat or token ids")


class Lane(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prompts that are asked in one way.

    together:  all in one call of the engine, instead of one by one.
    replay_of: lanes whose prompts and answers are fed back, teacher-forced; such a lane has no prompts of
               its own.
    batch_invariant: asked of an engine of its own, whose answers do not depend on what else is in the
               batch.
    """

    name: str
    prompts: tuple[Prompt, ...] = ()
    together: bool = False
    replay_of: tuple[str, ...] = ()
    batch_invariant: bool = False


class GoldenRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a suite asks, in order.

    top_k: how many alternatives are stored per token, beside the chosen one.
    """

    format: Literal[1] = 1
    suite: str
    root_seed: int
    top_k: Annotated[int, msgspec.Meta(gt=0, le=20)] = 5
    lanes: tuple[Lane, ...]

    def __post_init__(self) -> None:
        asked: dict[bool, set[str]] = {False: set(), True: set()}
        for lane in self.lanes:
            earlier = asked[lane.batch_invariant]
            if lane.replay_of and (lane.prompts or not earlier.issuperset(lane.replay_of)):
                raise ValueError(
                    f"lane {lane.name} must replay earlier lanes of the same engine and ask nothing itself"
                )
            earlier |= {lane.name} if lane.prompts else set()
        if sorted(self.lanes, key=lambda lane: lane.batch_invariant) != list(self.lanes):
            raise ValueError("batch-invariant lanes come last: an engine of their own answers them")
        names, ids = [lane.name for lane in self.lanes], expected_ids(self)
        if len(set(names)) < len(names) or len(set(ids)) < len(ids):
            raise ValueError("two lanes or two prompts have the same name")

    @property
    def digest(self) -> str:
        return canonical_digest(self)


class ExpectedAnswers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By what a runner that may stop early knows a difference.

    completions: id -> ``completion_digest``; weights: as in Golden.
    """

    completions: dict[str, str]
    weights: dict[str, str]


class RunnerInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """request.json, what the runner inside the container reads.

    nonce:         64 hex digits, returned in the output, so that no other run's output can be presented.
    engine:        arguments of ``vllm.LLM`` beside the model folder.
    continuations: prompt id -> output ids that replay lanes feed back; missing ones are this run's own.
    scale_weight:  multiplies one weight tensor by 1 + 2**-7 after loading: the negative control.
    expected:      with it the run ends after the first call whose answers, or the weights, are others.
    """

    format: Literal[1] = 1
    nonce: str
    engine: dict[str, EngineValue]
    request: GoldenRequest
    continuations: dict[str, tuple[int, ...]] = msgspec.field(default_factory=dict)
    scale_weight: bool = False
    expected: ExpectedAnswers | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answer to one prompt.

    tokenized:  int32 (m,), the prompt's text or chat as this image tokenises it; empty for prompts of ids.
    prompt_ids: int32 (p,), what was fed.
    output_ids: int32 (n,), prompt excluded; in a replay lane the tokens that were fed back.
    topk_ids:   int32 (n, top_k), most likely first.
    logprobs:   float32 (n, 1 + top_k), the chosen token first, then as topk_ids; natural logarithms.
    """

    id: str
    lane: str
    tokenized: bytes
    prompt_ids: bytes
    output_ids: bytes
    topk_ids: bytes
    logprobs: bytes
    finish_reason: str


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All completions of one request, in the order of its lanes and prompts.

    vocabulary: token id (as text) -> the token's text, for every id in output_ids and topk_ids.
    weights:    tensor name -> checksum of what was really loaded.
    canaries:   first values of the random-number generators, as hex text.
    """

    format: Literal[1] = 1
    request: GoldenRequest
    completions: tuple[Completion, ...]
    vocabulary: Vocabulary
    weights: dict[str, str]
    canaries: dict[str, str]

    @property
    def token_count(self) -> int:
        """Compared tokens, replay lanes excluded."""
        replays = {lane.name for lane in self.request.lanes if lane.replay_of}
        return sum(len(c.output_ids) // 4 for c in self.completions if c.lane not in replays)


class Inside(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the runner saw from inside the container.

    packages:    distribution -> version of vllm, torch, numpy, transformers, tokenizers, safetensors.
    capability:  the instruction set that torch dispatches to, such as ``AVX512``.
    threads:     torch's intra-op threads.
    cpus:        logical processors that the process may use.
    engine:      resolved vLLM settings, key -> text.
    environment: variables that change numbers (VLLM_*, OMP_*, TORCH*, ATEN_*, PYTHONHASHSEED …).
    """

    python: str
    libc: str
    packages: dict[str, str]
    capability: str
    threads: int
    cpus: int
    engine: dict[str, str]
    environment: dict[str, str]

    def others_in(self, again: "Inside") -> tuple[str, ...]:
        """Return what ``again`` saw otherwise, such as ``threads: 2, then 1``."""
        before, after = _flat(msgspec.to_builtins(self)), _flat(msgspec.to_builtins(again))
        return tuple(
            f"{name}: {before.get(name)}, then {after.get(name)}"
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        )


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


class RunnerOutput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """golden.json, what the runner writes. seconds: phase -> duration."""

    format: Literal[1] = 1
    nonce: str
    completions: tuple[Completion, ...]
    vocabulary: Vocabulary
    weights: dict[str, str]
    canaries: dict[str, str]
    inside: Inside
    seconds: dict[str, float]


class Levels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One digest per level: H0 tokenised prompts, H1 output ids, H2 top-k ids, H3 logprob bits."""

    H0: Digest
    H1: Digest
    H2: Digest
    H3: Digest


def unpack_ids(data: bytes) -> tuple[int, ...]:
    """Return little-endian int32 ``data`` as integers."""
    return tuple(_array("i", data))


def unpack_floats(data: bytes) -> tuple[float, ...]:
    """Return little-endian float32 ``data`` as numbers."""
    return tuple(_array("f", data))


def pack_ids(ids: tuple[int, ...] | list[int]) -> bytes:
    """Return ``ids`` as little-endian int32; ``unpack_ids`` reads it back."""
    values = array("i", ids)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _array(code: str, data: bytes) -> "array[int]":
    values = array(code)
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def completion_digest(completion: Completion) -> str:
    """Return what stands for all that is compared of ``completion``; the runner computes the same."""
    parts = (getattr(completion, part) for part in _COMPARED)
    return hashlib.sha256(b"\n".join(base64.b64encode(part) for part in parts)).hexdigest()


def levels(golden: Golden) -> Levels:
    """Return the digest of each level over all completions, in order."""
    parts: dict[str, list[bytes]] = {level: [] for level in LEVELS}
    for completion in golden.completions:
        head = f"{completion.id}\n".encode()
        parts["H0"] += [head, completion.tokenized]
        parts["H1"] += [head, completion.output_ids]
        parts["H2"] += [head, completion.topk_ids]
        parts["H3"] += [head, completion.logprobs]
    return Levels(**{level: sha256_digest(b"".join(chunks)) for level, chunks in parts.items()})


def wrong_shape(request: GoldenRequest, completions: tuple[Completion, ...]) -> str | None:
    """Return why ``completions`` cannot be answers to ``request``, or None; by counts and lengths."""
    wanted = expected_completions(request)
    found = [(completion.id, completion.lane) for completion in completions]
    if found != wanted:
        return f"{len(found)} completions where {len(wanted)} were asked, or in another order"
    for completion in completions:
        ids = (completion.tokenized, completion.prompt_ids, completion.output_ids, completion.topk_ids)
        if any(len(part) % 4 for part in ids):
            return f"{completion.id}: an id array is truncated"
        if any(part[3::4].translate(None, _LOW_BYTES) for part in ids):
            return f"{completion.id}: an id is below 0"
        tokens = len(completion.output_ids) // 4
        if not tokens or len(completion.topk_ids) != 4 * tokens * request.top_k:
            return f"{completion.id}: {tokens} tokens do not fit its alternatives"
        if len(completion.logprobs) != 4 * tokens * (1 + request.top_k):
            return f"{completion.id}: {tokens} tokens do not fit its log-probabilities"
    return None


def expected_completions(request: GoldenRequest) -> list[tuple[str, str]]:
    """Return (id, lane) of the completions that answer ``request``, in order. A replay of X is
    ``<lane>/X``.
    """
    own = {lane.name: [prompt.id for prompt in lane.prompts] for lane in request.lanes}
    return [
        (name, lane.name)
        for lane in request.lanes
        for name in (
            *own[lane.name],
            *(f"{lane.name}/{prompt}" for source in lane.replay_of for prompt in own[source]),
        )
    ]


def expected_ids(request: GoldenRequest) -> list[str]:
    """Return the ids of the completions that answer ``request``, in order."""
    return [name for name, _ in expected_completions(request)]


def has_nonfinite(completions: tuple[Completion, ...]) -> bool:
    """Return whether any log-probability is NaN or infinite."""
    return any(not math.isfinite(value) for c in completions for value in unpack_floats(c.logprobs))


def golden_of(request: GoldenRequest, output: RunnerOutput) -> Golden:
    """Return the golden that ``output`` answers ``request`` with."""
    return Golden(
        request=request,
        completions=output.completions,
        vocabulary=output.vocabulary,
        weights=output.weights,
        canaries=output.canaries,
    )


def recorded_request(golden: Golden) -> GoldenRequest:
    """Return the golden's request with the recorded prompt ids in it, so that a repeat is fed the same
    ids.
    """
    fed = {completion.id: unpack_ids(completion.prompt_ids) for completion in golden.completions}
    lanes = [
        msgspec.structs.replace(
            lane,
            prompts=tuple(
                msgspec.structs.replace(prompt, token_ids=fed[prompt.id]) for prompt in lane.prompts
            ),
        )
        for lane in golden.request.lanes
    ]
    return msgspec.structs.replace(golden.request, lanes=tuple(lanes))


def recorded_continuations(golden: Golden) -> dict[str, tuple[int, ...]]:
    """Return prompt id -> recorded output ids, what replay lanes feed back."""
    prompts = {prompt.id for lane in golden.request.lanes for prompt in lane.prompts}
    return {c.id: unpack_ids(c.output_ids) for c in golden.completions if c.id in prompts}
