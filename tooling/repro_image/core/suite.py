"""Suites: a name and a root seed -> the GoldenRequest that is asked; the same on every machine and Python."""

import random
from collections.abc import Iterator
from typing import Literal

import msgspec

from repro_image.core.derive import derive, derive63
from repro_image.core.golden import GoldenRequest, Lane, Prompt, Sampling
from repro_image.errors import InvalidFileError, UnknownSuiteError

# Synthetic prompts draw from here: above every vocabulary's special and byte tokens, below the end of every
# vocabulary of at least 40,000 tokens.
_SYNTHETIC_IDS = range(1000, 40_000)


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How one lane is made.

    count, max_tokens: prompts, and tokens asked of each.
    joined:            natural prompts that make one prompt of this lane.
    synthetic:         length of a prompt of random token ids; 0 for natural prompts.
    synthetic_to:      with it the length is drawn, from ``synthetic`` to here.
    prefixes:          lengths of random ids that stand before the prompts in turn, each shared by several.
    together:          asked in one call.
    same_as:           takes its prompts from this earlier lane.
    """

    name: str
    count: int
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    joined: int = 1
    synthetic: int = 0
    synthetic_to: int = 0
    prefixes: tuple[int, ...] = ()
    together: bool = False
    same_as: str | None = None


_PLANS = {
    "full": (
        _Plan(name="greedy", count=20, max_tokens=256),
        _Plan(name="greedy-synthetic", count=44, max_tokens=256, synthetic=16, synthetic_to=256),
        _Plan(name="sampled", count=16, max_tokens=256, temperature=1.0, top_p=0.95),
        _Plan(name="stress", count=4, max_tokens=256, temperature=2.0, top_p=0.1),
        _Plan(name="long", count=4, max_tokens=512, synthetic=300, synthetic_to=2000),
        _Plan(name="shape-alone", count=8, max_tokens=64, synthetic=64, synthetic_to=512),
        _Plan(name="shape-together", count=8, max_tokens=64, together=True, same_as="shape-alone"),
        # Lengths around a block's border and across many blocks, where a prefix cache would step in.
        _Plan(name="shape-prefix", count=9, max_tokens=32, synthetic=32, prefixes=(1, 511, 2048)),
    ),
    "smoke": (
        _Plan(name="greedy", count=8, max_tokens=48),
        _Plan(name="sampled", count=4, max_tokens=48, temperature=1.0, top_p=0.95),
        _Plan(name="stress", count=2, max_tokens=32, temperature=2.0, top_p=0.1),
        _Plan(name="long", count=1, max_tokens=48, synthetic=700),
        # Longer than a KV block of 128 tokens, so that a prefix cache has something to reuse.
        _Plan(name="shape-alone", count=3, max_tokens=32, joined=5),
        _Plan(name="shape-together", count=3, max_tokens=32, together=True, same_as="shape-alone"),
    ),
    "tiny": (
        _Plan(name="greedy", count=2, max_tokens=16),
        _Plan(name="sampled", count=2, max_tokens=16, temperature=1.0, top_p=0.95),
    ),
}
_REPLAY = Lane(name="replay", replay_of=("greedy", "sampled"))

SUITES = tuple(sorted(_PLANS))


class NaturalPrompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of prompts.toml. kind: for readers, such as ``code``."""

    kind: str
    text: str


class _PromptFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal[1]
    prompts: tuple[NaturalPrompt, ...]


def parse_prompts(text: str, *, path: str) -> tuple[str, ...]:
    """Return the texts of a prompts.toml, in its order. Raises: InvalidFileError."""
    try:
        prompts = tuple(entry.text for entry in msgspec.toml.decode(text, type=_PromptFile).prompts)
    except msgspec.DecodeError as error:
        raise InvalidFileError(str(error), path=path) from error
    if len(set(prompts)) != len(prompts) or "" in prompts:
        raise InvalidFileError("a prompt is empty or there twice", path=path)
    return prompts


def golden_request(suite: str, *, seed: int, prompts: tuple[str, ...]) -> GoldenRequest:
    """Return what ``suite`` asks under the root ``seed``; natural prompts are picked from ``prompts``.

    No natural prompt is used twice, except in lanes that ask another lane's prompts again.
    Raises: UnknownSuiteError; ValueError where ``prompts`` are fewer than the suite needs.
    """
    if suite not in _PLANS:
        raise UnknownSuiteError(suite, known=SUITES)
    picks = _picks(suite, seed, prompts)
    lanes: dict[str, Lane] = {}
    for plan in _PLANS[suite]:
        again = lanes[plan.same_as].prompts if plan.same_as else ()
        lanes[plan.name] = Lane(
            name=plan.name,
            together=plan.together,
            prompts=tuple(
                _prompt(plan, index, same_as=again[index], seed=seed, suite=suite)
                if again
                else _prompt(plan, index, picks=picks, seed=seed, suite=suite)
                for index in range(plan.count)
            ),
        )
    return GoldenRequest(suite=suite, root_seed=seed, lanes=(*lanes.values(), _REPLAY))


def _picks(suite: str, seed: int, prompts: tuple[str, ...]) -> Iterator[str]:
    """Yield ``prompts`` in the suite's own order; a sort by named children needs no shuffling algorithm."""
    order = sorted(range(len(prompts)), key=lambda index: derive(seed, f"suite.{suite}.prompt.{index}.rank"))
    yield from (prompts[index] for index in order)
    raise ValueError(f"{len(prompts)} natural prompts are too few for suite {suite}")


def _prompt(
    plan: _Plan,
    index: int,
    *,
    seed: int,
    suite: str,
    picks: Iterator[str] | None = None,
    same_as: Prompt | None = None,
) -> Prompt:
    """Return one prompt: new text from ``picks``, new ids, or what ``same_as`` asks."""
    child = f"suite.{suite}.{plan.name}.{index}"
    text, ids = None, None
    if same_as is not None:
        text, ids = same_as.text, same_as.token_ids
    elif plan.synthetic:
        ids = _shared_prefix(plan, index, seed=seed, suite=suite) + synthetic_ids(
            derive(seed, f"{child}.token_ids"), _length(plan, seed=seed, child=child)
        )
    elif picks is not None:
        texts = [next(picks) for _ in range(plan.joined)]
        text = texts[0] if len(texts) == 1 else "\n\n".join(part.strip("\n") for part in texts)
    return Prompt(
        id=f"{plan.name}/{index:03}",
        text=text,
        token_ids=ids,
        sampling=Sampling(
            max_tokens=plan.max_tokens,
            temperature=plan.temperature,
            top_p=plan.top_p,
            seed=derive63(seed, f"{child}.sampling") if plan.temperature else None,
        ),
    )


def _length(plan: _Plan, *, seed: int, child: str) -> int:
    if not plan.synthetic_to:
        return plan.synthetic
    return plan.synthetic + derive(seed, f"{child}.length") % (plan.synthetic_to - plan.synthetic + 1)


def _shared_prefix(plan: _Plan, index: int, *, seed: int, suite: str) -> tuple[int, ...]:
    if not plan.prefixes:
        return ()
    length = plan.prefixes[index % len(plan.prefixes)]
    return synthetic_ids(derive(seed, f"suite.{suite}.{plan.name}.prefix.{length}.token_ids"), length)


def synthetic_ids(seed: int, length: int) -> tuple[int, ...]:
    """Return ``length`` token ids drawn by ``seed``.

    Only ``random()`` is used: of all methods it alone is promised to stay the same between Pythons.
    """
    rng = random.Random(seed)  # noqa: S311  has to repeat, not to be secret
    low, span = _SYNTHETIC_IDS.start, len(_SYNTHETIC_IDS)
    return tuple(low + int(rng.random() * span) for _ in range(length))
