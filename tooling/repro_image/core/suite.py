"""Suites: a name and a root seed -> the GoldenRequest that is asked; the same on every machine and Python."""

from collections.abc import Iterator
from typing import Literal, TypeVar

import msgspec

from repro_image.core.derive import derive, derive63, synthetic_ids
from repro_image.core.golden import GoldenRequest, Lane, Message, Prompt, Sampling
from repro_image.errors import InvalidFileError, UnknownSuiteError


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How one lane is made.

    count, max_tokens: prompts, and tokens asked of each.
    chats:             how many of the prompts are chats, the last ones.
    joined:            natural prompts that make one prompt of this lane.
    synthetic:         length of a prompt of random token ids; 0 for natural prompts.
    synthetic_to:      with it the length is drawn, from ``synthetic`` to here.
    prefixes:          lengths of random ids that stand before the prompts in turn, each shared by several.
    together:          asked in one call.
    batch_invariant:   asked of a batch-invariant engine; left out on the CPU, where there is none.
    same_as:           takes its prompts from this earlier lane.
    """

    name: str
    count: int
    max_tokens: int
    chats: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    joined: int = 1
    synthetic: int = 0
    synthetic_to: int = 0
    prefixes: tuple[int, ...] = ()
    together: bool = False
    batch_invariant: bool = False
    same_as: str | None = None


_PLANS = {
    "full": (
        _Plan(name="greedy", count=20, max_tokens=256, chats=6),
        _Plan(name="greedy-synthetic", count=44, max_tokens=256, synthetic=16, synthetic_to=256),
        _Plan(name="sampled", count=16, max_tokens=256, chats=5, temperature=1.0, top_p=0.95),
        _Plan(name="stress", count=4, max_tokens=256, chats=1, temperature=2.0, top_p=0.1),
        _Plan(name="long", count=4, max_tokens=512, synthetic=300, synthetic_to=2000),
        _Plan(name="shape-alone", count=8, max_tokens=64, synthetic=64, synthetic_to=512),
        _Plan(name="shape-together", count=8, max_tokens=64, together=True, same_as="shape-alone"),
        # Lengths around a block's border and across many blocks, where a prefix cache would step in.
        _Plan(name="shape-prefix", count=9, max_tokens=32, synthetic=32, prefixes=(1, 511, 2048)),
        _Plan(name="invariant-alone", count=8, max_tokens=64, same_as="shape-alone", batch_invariant=True),
        _Plan(
            name="invariant-together",
            count=8,
            max_tokens=64,
            together=True,
            same_as="shape-alone",
            batch_invariant=True,
        ),
    ),
    "smoke": (
        _Plan(name="greedy", count=8, max_tokens=48, chats=2),
        _Plan(name="sampled", count=4, max_tokens=48, chats=1, temperature=1.0, top_p=0.95),
        _Plan(name="stress", count=2, max_tokens=32, temperature=2.0, top_p=0.1),
        _Plan(name="long", count=1, max_tokens=48, synthetic=700),
        # Longer than a KV block of 128 tokens, so that a prefix cache has something to reuse.
        _Plan(name="shape-alone", count=3, max_tokens=32, joined=5),
        _Plan(name="shape-together", count=3, max_tokens=32, together=True, same_as="shape-alone"),
    ),
    "tiny": (
        _Plan(name="greedy", count=2, max_tokens=16, chats=1),
        _Plan(name="sampled", count=2, max_tokens=16, temperature=1.0, top_p=0.95),
    ),
}
_REPLAY = Lane(name="replay", replay_of=("greedy", "sampled"))

SUITES = tuple(sorted(_PLANS))


class _Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of prompts.toml. kind: for readers, such as ``code``."""

    kind: str
    text: str


class _Chat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One chat of prompts.toml, whose next turn is the assistant's. kind: for readers."""

    kind: str
    messages: tuple[Message, ...]


class _PromptFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal[1]
    prompts: tuple[_Text, ...]
    chats: tuple[_Chat, ...]


class NaturalPrompts(msgspec.Struct, frozen=True, kw_only=True):
    """What suites pick from."""

    texts: tuple[str, ...]
    chats: tuple[tuple[Message, ...], ...]


def parse_prompts(text: str, *, path: str) -> NaturalPrompts:
    """Return what a prompts.toml holds, in its order. Raises: InvalidFileError."""
    try:
        file = msgspec.toml.decode(text, type=_PromptFile)
    except msgspec.DecodeError as error:
        raise InvalidFileError(str(error), path=path) from error
    texts = tuple(entry.text for entry in file.prompts)
    chats = tuple(entry.messages for entry in file.chats)
    if len({*texts, *chats}) != len(texts) + len(chats) or "" in texts or () in chats:
        raise InvalidFileError("a prompt is empty or there twice", path=path)
    return NaturalPrompts(texts=texts, chats=chats)


def golden_request(suite: str, *, seed: int, prompts: NaturalPrompts, on_gpu: bool) -> GoldenRequest:
    """Return what ``suite`` asks under the root ``seed``; natural prompts are picked from ``prompts``.

    on_gpu: with the lanes that the CPU cannot answer, see ``left_out``.
    No natural prompt is used twice, except in lanes that ask another lane's prompts again.
    Raises: UnknownSuiteError; ValueError where ``prompts`` are fewer than the suite needs.
    """
    if suite not in _PLANS:
        raise UnknownSuiteError(suite, known=SUITES)
    picks = _Picks(
        texts=_picked(prompts.texts, "prompt", seed=seed, suite=suite),
        chats=_picked(prompts.chats, "chat", seed=seed, suite=suite),
    )
    lanes: dict[str, Lane] = {}
    plans = [plan for plan in _PLANS[suite] if on_gpu or not plan.batch_invariant]
    for plan in plans:
        again = lanes[plan.same_as].prompts if plan.same_as else ()
        lanes[plan.name] = Lane(
            name=plan.name,
            together=plan.together,
            batch_invariant=plan.batch_invariant,
            prompts=tuple(
                _prompt(
                    plan,
                    index,
                    seed=seed,
                    suite=suite,
                    picks=picks,
                    same_as=again[index] if again else None,
                )
                for index in range(plan.count)
            ),
        )
    return GoldenRequest(suite=suite, root_seed=seed, lanes=_with_replay(tuple(lanes.values())))


def _with_replay(lanes: tuple[Lane, ...]) -> tuple[Lane, ...]:
    """Return ``lanes`` with the replay after those of the same engine."""
    invariant = tuple(lane for lane in lanes if lane.batch_invariant)
    return (*(lane for lane in lanes if not lane.batch_invariant), _REPLAY, *invariant)


def left_out(suite: str, *, on_gpu: bool) -> tuple[str, ...]:
    """Return the lanes of ``suite`` that are not asked on such a machine."""
    return tuple(plan.name for plan in _PLANS.get(suite, ()) if plan.batch_invariant and not on_gpu)


T = TypeVar("T")


class _Picks(msgspec.Struct, frozen=True, kw_only=True):
    """Natural prompts in the order in which a suite's lanes take them."""

    texts: Iterator[str]
    chats: Iterator[tuple[Message, ...]]


def _picked(entries: tuple[T, ...], kind: str, *, seed: int, suite: str) -> Iterator[T]:
    """Yield ``entries`` in the suite's own order; a sort by named children needs no shuffling algorithm."""
    order = sorted(range(len(entries)), key=lambda index: derive(seed, f"suite.{suite}.{kind}.{index}.rank"))
    yield from (entries[index] for index in order)
    raise ValueError(f"{len(entries)} {kind}s are too few for suite {suite}")


def _prompt(
    plan: _Plan, index: int, *, seed: int, suite: str, picks: _Picks, same_as: Prompt | None = None
) -> Prompt:
    """Return one prompt: new text or chat from ``picks``, new ids, or what ``same_as`` asks."""
    child = f"suite.{suite}.{plan.name}.{index}"
    text, chat, ids = None, None, None
    if same_as is not None:
        text, chat, ids = same_as.text, same_as.chat, same_as.token_ids
    elif plan.synthetic:
        ids = _shared_prefix(plan, index, seed=seed, suite=suite) + synthetic_ids(
            derive(seed, f"{child}.token_ids"), _length(plan, seed=seed, child=child)
        )
    elif index >= plan.count - plan.chats:
        chat = next(picks.chats)
    else:
        texts = [next(picks.texts) for _ in range(plan.joined)]
        text = texts[0] if len(texts) == 1 else "\n\n".join(part.strip("\n") for part in texts)
    return Prompt(
        id=f"{plan.name}/{index:03}",
        text=text,
        chat=chat,
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
