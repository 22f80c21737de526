"""images/<image>/suite.toml: a suite that the image's owner writes -> the GoldenRequest that is asked.

Seeds are no part of it: each sampled prompt gets its own from ``golden.seed``, by the names of lane and
prompt.
"""

from typing import Annotated, Literal, TypeAlias

import msgspec

from repro_image.core.derive import derive63
from repro_image.core.golden import (
    GoldenRequest,
    Lane,
    Message,
    Prompt,
    Sampling,
    Temperature,
    TokenId,
    TopP,
    require_one_thing,
)
from repro_image.core.project import Name, Positive
from repro_image.errors import InvalidFileError

OWN_SUITE = "suite.toml"
Text: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]
# What a golden of one image may hold: thirty times the largest suite that ships.
_MOST_TOKENS = 2**20


class _OwnPrompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prompt: a text, a chat or token ids; with both, the ids are fed and the other is only tokenised."""

    text: Text | None = None
    chat: tuple[Message, ...] | None = None
    token_ids: tuple[TokenId, ...] | None = None

    def __post_init__(self) -> None:
        require_one_thing(self.text, self.chat, self.token_ids)


class _OwnLane(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prompts that are asked in one way, or the replay of earlier lanes.

    temperature: 0 is greedy.
    together:    all in one call of the engine, instead of one by one.
    batch_invariant: asked of an engine of its own, on GPUs only; such lanes come last.
    """

    name: Name
    prompts: tuple[_OwnPrompt, ...] = ()
    max_tokens: Positive | None = None
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    together: bool = False
    replay_of: tuple[Name, ...] = ()
    batch_invariant: bool = False

    def __post_init__(self) -> None:
        if bool(self.prompts) == bool(self.replay_of):
            raise ValueError("a lane has either prompts or replay_of")
        if bool(self.prompts) != (self.max_tokens is not None):
            raise ValueError("max_tokens belongs to prompts: a replay feeds back what was answered")
        if self.replay_of and (self.temperature, self.top_p) != (0.0, 1.0):
            raise ValueError("a replay draws nothing: temperature and top_p are not for it")
        if 0.0 < self.temperature < 0.01:
            raise ValueError("vLLM raises a temperature below 0.01 to 0.01: write 0 or at least 0.01")


class _OwnSuite(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal[1]
    lanes: Annotated[tuple[_OwnLane, ...], msgspec.Meta(min_length=1)]


def parse_own_suite(text: str, *, seed: int, path: str) -> GoldenRequest:
    """Return what the suite.toml ``text`` asks under the root ``seed``.

    Raises: InvalidFileError with the key path, such as ``$.lanes[0].prompts[2]``.
    """
    try:
        suite = msgspec.toml.decode(text, type=_OwnSuite)
        request = GoldenRequest(
            suite="own", root_seed=seed, lanes=tuple(_lane(lane, seed=seed) for lane in suite.lanes)
        )
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidFileError(str(error), path=path, fix="correct the file at the place named") from error
    if not any(lane.prompts for lane in request.lanes):
        raise InvalidFileError("no lane asks anything", path=path, fix="add a lane with prompts")
    tokens = sum(
        p.sampling.max_tokens + len(p.token_ids or ()) for lane in request.lanes for p in lane.prompts
    )
    if tokens > _MOST_TOKENS:
        raise InvalidFileError(
            f"it asks and feeds {tokens} tokens, more than {_MOST_TOKENS}", path=path, fix="ask for fewer"
        )
    return request


def _lane(lane: _OwnLane, *, seed: int) -> Lane:
    return Lane(
        name=lane.name,
        together=lane.together,
        replay_of=lane.replay_of,
        batch_invariant=lane.batch_invariant,
        prompts=tuple(
            Prompt(
                id=f"{lane.name}/{index:03}",
                text=prompt.text,
                chat=prompt.chat,
                token_ids=prompt.token_ids,
                sampling=Sampling(
                    max_tokens=lane.max_tokens or 0,
                    temperature=lane.temperature or 0.0,
                    top_p=lane.top_p,
                    seed=derive63(seed, f"suite.own.{lane.name}.{index}.sampling")
                    if lane.temperature
                    else None,
                ),
            )
            for index, prompt in enumerate(lane.prompts)
        ),
    )
