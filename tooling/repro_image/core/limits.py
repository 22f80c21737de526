"""What vLLM would refuse, or die of, only when a run is under way: found before anything starts."""

from collections.abc import Iterator, Mapping

import msgspec

from repro_image.core.engines import INVARIANT
from repro_image.core.golden import GoldenRequest, Prompt
from repro_image.core.project import EngineValue

_VLLM_MAX_LOGPROBS = 20
_NO_INVARIANCE = "it is for GPUs, on the CPU vLLM starts with it and dies at the first token"


class Impossible(msgspec.Struct, frozen=True, kw_only=True):
    """setting: as `--set` names it, such as ``env.VLLM_BATCH_INVARIANT``; reason: a sentence."""

    setting: str
    reason: str


def impossible(
    request: GoldenRequest,
    *,
    engine: Mapping[str, EngineValue],
    environment: Mapping[str, str],
    on_gpu: bool,
) -> Impossible | None:
    """Return why ``request`` cannot be asked with these settings, or None where nothing is known against it.

    request: texts and chats count as one token, unless their ids are in it.
    """
    found = _found(request, engine, environment, on_gpu=on_gpu)
    return next((Impossible(setting=setting, reason=reason) for setting, reason in found), None)


def _found(
    request: GoldenRequest,
    engine: Mapping[str, EngineValue],
    environment: Mapping[str, str],
    *,
    on_gpu: bool,
) -> Iterator[tuple[str, str]]:
    if not on_gpu:
        if environment.get(INVARIANT, "0") not in ("", "0"):
            yield f"env.{INVARIANT}", _NO_INVARIANCE
        for lane in request.lanes:
            if lane.batch_invariant:
                yield "suite", f"lane {lane.name} asks for batch invariance: {_NO_INVARIANCE}"
    most = engine.get("max_logprobs", _VLLM_MAX_LOGPROBS)
    if isinstance(most, int) and 0 <= most < request.top_k:
        yield "max_logprobs", f"{most} log-probabilities per token are too few: {request.top_k} are recorded"
    room = engine.get("max_model_len")
    if isinstance(room, int):
        prompt, needed = max(_needed(request), key=lambda entry: entry[1])
        if needed > room:
            told = f"{prompt.id} needs {needed} tokens, its prompt and its answer together"
            yield "max_model_len", f"{room} tokens are too few: {told}"
    step = engine.get("max_num_batched_tokens")
    if not on_gpu and engine.get("enable_chunked_prefill") and isinstance(step, int):
        for lane in request.lanes:
            for prompt in lane.prompts:
                if prompt.sampling.seed is not None and len(prompt.token_ids or ()) > step:
                    told = f"{prompt.id} is sampled and longer than {step} tokens"
                    yield "enable_chunked_prefill", f"{told}: split, it kills vLLM's engine on the CPU"


def _needed(request: GoldenRequest) -> Iterator[tuple[Prompt, int]]:
    """Yield each prompt with the tokens that it takes up; a replay needs room for one token more."""
    replayed = {name for lane in request.lanes for name in lane.replay_of}
    for lane in request.lanes:
        for prompt in lane.prompts:
            length = len(prompt.token_ids) if prompt.token_ids else 1
            yield prompt, length + prompt.sampling.max_tokens + (lane.name in replayed)
