"""``verify --set KEY=VALUE``: a change of the subject on purpose, parsed and applied. Nothing of it is
recorded.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

from repro_image.core.derive import derive63
from repro_image.core.golden import GoldenRequest
from repro_image.core.limits import impossible
from repro_image.core.project import OWN_VARIABLES, SECRET_NAME, EngineValue, wrong_counts
from repro_image.errors import ImpossibleSettingError, WhatIfError

_ENGINE_KEY = re.compile(r"[a-z][a-z0-9_]*")
_ENVIRONMENT_KEY = re.compile(r"env\.([A-Z][A-Z0-9_]*)")
_SAFE_VALUE = re.compile(r"[A-Za-z0-9_.,:/=+@%-]*")


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """What to change. threads: another number of cores; sampling_seed: another root for per-prompt seeds."""

    engine: dict[str, EngineValue] = msgspec.field(default_factory=dict)
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    threads: int | None = None
    sampling_seed: int | None = None

    @property
    def is_empty(self) -> bool:
        return self == WhatIf()


def parse_what_if(settings: Sequence[str]) -> WhatIf:
    """Return the change that ``settings`` (``KEY=VALUE`` each) describe.

    Keys: an argument of vllm.LLM such as ``dtype``; ``env.NAME``; ``threads``; ``sampling.seed``.
    Raises: WhatIfError.
    """
    engine: dict[str, EngineValue] = {}
    environment: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        variable = _ENVIRONMENT_KEY.fullmatch(key)
        if not equals or not _SAFE_VALUE.fullmatch(value):
            raise WhatIfError(setting, reason="it must be KEY=VALUE without spaces or quotes")
        if key in ("threads", "sampling.seed"):
            if not re.fullmatch(r"[0-9]{1,18}", value) or (key == "threads" and int(value) == 0):
                raise WhatIfError(setting, reason=f"{key} must be a whole number")
            numbers[key] = int(value)
        elif variable and SECRET_NAME.fullmatch(variable.group(1)):
            raise WhatIfError(key, reason="it is named like a credential, and settings stand in every report")
        elif variable and variable.group(1) in OWN_VARIABLES:
            raise WhatIfError(key, reason=OWN_VARIABLES[variable.group(1)])
        elif variable:
            environment[variable.group(1)] = value
        elif _ENGINE_KEY.fullmatch(key):
            engine[key] = _engine_value(value)
        else:
            raise WhatIfError(
                setting, reason="unknown key; known are engine settings, env.NAME, threads, sampling.seed"
            )
    for key in wrong_counts(engine):
        setting = next(one for one in settings if one.startswith(f"{key}="))
        raise WhatIfError(setting, reason=f"{key} must be a whole number of at least 1")
    return WhatIf(
        engine=engine,
        environment=environment,
        threads=numbers.get("threads"),
        sampling_seed=numbers.get("sampling.seed"),
    )


def _engine_value(text: str) -> EngineValue:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    if re.fullmatch(r"-?[0-9]+\.[0-9]+", text):
        return float(text)
    return text


def changed_engine(engine: Mapping[str, EngineValue], what_if: WhatIf) -> dict[str, EngineValue]:
    """Return the engine settings with the change applied."""
    return {**engine, **what_if.engine}


def refuse_impossible(
    what_if: WhatIf,
    request: GoldenRequest,
    *,
    engine: Mapping[str, EngineValue],
    environment: Mapping[str, str],
    on_gpu: bool,
) -> None:
    """Raise ImpossibleSettingError for a change of which it is known that vLLM would die of it.

    engine, environment: what the golden was recorded with.
    """
    found = impossible(
        request,
        engine=changed_engine(engine, what_if),
        environment={**environment, **what_if.environment},
        on_gpu=on_gpu,
    )
    if found:
        raise ImpossibleSettingError(found.setting, reason=found.reason)


def changed_request(request: GoldenRequest, what_if: WhatIf) -> GoldenRequest:
    """Return the request with every per-prompt seed drawn anew from ``sampling_seed``, where that is set."""
    root = what_if.sampling_seed
    if root is None:
        return request
    lanes = []
    for lane in request.lanes:
        prompts = [
            prompt
            if prompt.sampling.seed is None
            else msgspec.structs.replace(
                prompt, sampling=msgspec.structs.replace(prompt.sampling, seed=derive63(root, prompt.id))
            )
            for prompt in lane.prompts
        ]
        lanes.append(msgspec.structs.replace(lane, prompts=tuple(prompts)))
    return msgspec.structs.replace(request, lanes=tuple(lanes))
