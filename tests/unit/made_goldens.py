"""Small goldens made by rule: three greedy prompts, two sampled ones and the replay of both lanes."""

import struct
from collections.abc import Callable

from msgspec.structs import replace

from repro_image.core.golden import (
    Completion,
    Golden,
    GoldenRequest,
    Inside,
    Lane,
    Prompt,
    Sampling,
    expected_ids,
    pack_ids,
    unpack_floats,
    unpack_ids,
)

INSIDE = Inside(
    python="3.11.2",
    libc="glibc 2.36",
    packages={},
    capability="AVX512",
    threads=2,
    cpus=2,
    engine={},
    environment={},
)
TOP_K = 2
TOKENS = 8


def make_golden() -> Golden:
    """Return a golden of 5 x 8 tokens: token n of prompt p is 10 * p + n, margins are 2 nats."""
    greedy = tuple(
        Prompt(id=f"greedy/{n}", text=f"prompt {n}", sampling=Sampling(max_tokens=TOKENS)) for n in range(3)
    )
    sampled = tuple(
        Prompt(
            id=f"sampled/{n}", token_ids=(7, n), sampling=Sampling(max_tokens=TOKENS, temperature=1.0, seed=n)
        )
        for n in range(2)
    )
    request = GoldenRequest(
        suite="made",
        root_seed=42,
        top_k=TOP_K,
        lanes=(
            Lane(name="greedy", prompts=greedy),
            Lane(name="sampled", prompts=sampled),
            Lane(name="replay", replay_of=("greedy", "sampled")),
        ),
    )
    completions = tuple(_completion(number, name) for number, name in enumerate(expected_ids(request)))
    used = {i for c in completions for part in (c.output_ids, c.topk_ids) for i in unpack_ids(part)}
    return Golden(
        request=request,
        completions=completions,
        vocabulary={str(i): f" word{i}" for i in sorted(used)},
        weights={"embed": "aa", "layers.0": "bb"},
        canaries={"python": "00"},
    )


def _completion(number: int, name: str) -> Completion:
    number %= 5  # a replay answers as the prompt that it replays
    lane = name.split("/")[0]
    chosen = [10 * number + n for n in range(TOKENS)]
    return Completion(
        id=name,
        lane=lane,
        tokenized=pack_ids([1, 2, number]) if lane == "greedy" else b"",
        prompt_ids=pack_ids([1, 2, number]),
        output_ids=pack_ids(chosen),
        topk_ids=pack_ids([i for token in chosen for i in (token, token + 100)]),
        logprobs=pack_floats([value for _ in chosen for value in (-0.25, -0.25, -2.25)]),
        finish_reason="length",
    )


def with_batch(golden: Golden, *, batch_invariant: bool = False) -> Golden:
    """Return ``golden`` with a lane ``batch`` that asks the greedy prompts together, answered the same."""
    greedy = next(lane for lane in golden.request.lanes if lane.name == "greedy")
    asked = tuple(replace(prompt, id=f"batch/{n}") for n, prompt in enumerate(greedy.prompts))
    batch = Lane(name="batch", prompts=asked, together=True, batch_invariant=batch_invariant)
    answers = [c for c in golden.completions if c.lane == "greedy"]
    return replace(
        golden,
        request=replace(golden.request, lanes=(*golden.request.lanes, batch)),
        completions=(
            *golden.completions,
            *(replace(c, id=f"batch/{n}", lane="batch") for n, c in enumerate(answers)),
        ),
    )


def pack_floats(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def change(golden: Golden, changes: dict[str, Callable[[Completion], Completion]]) -> Golden:
    """Return ``golden`` with the completions named in ``changes`` changed."""
    same: Callable[[Completion], Completion] = lambda completion: completion  # noqa: E731
    return replace(golden, completions=tuple(changes.get(c.id, same)(c) for c in golden.completions))


def other_token(position: int, token: int = 999) -> Callable[[Completion], Completion]:
    """Return a change: from ``position`` on another token, with other odds after it but equal odds at it."""

    def changed(completion: Completion) -> Completion:
        ids, odds = list(unpack_ids(completion.output_ids)), list(unpack_floats(completion.logprobs))
        ids[position] = token
        odds[3 * position] = -3.5
        for later in range(3 * (position + 1), len(odds)):
            odds[later] -= 0.5
        return replace(completion, output_ids=pack_ids(ids), logprobs=pack_floats(odds))

    return changed


def other_bits(position: int, nats: float = 0.0009765625) -> Callable[[Completion], Completion]:
    """Return a change: all log-probabilities at ``position`` moved by ``nats``, tokens same."""

    def changed(completion: Completion) -> Completion:
        odds = list(unpack_floats(completion.logprobs))
        for column in range(3 * position, 3 * position + 3):
            odds[column] -= nats
        return replace(completion, logprobs=pack_floats(odds))

    return changed
