"""Which engine answers which lanes of a request: batch-invariant lanes need one that was started for them."""

from collections.abc import Mapping, Sequence

import msgspec

from repro_image.core.golden import GoldenRequest, Lane, RunnerOutput
from repro_image.core.project import EngineValue

INVARIANT = "VLLM_BATCH_INVARIANT"
_BATCH = 8


class EnginePart(msgspec.Struct, frozen=True, kw_only=True):
    """Lanes that one engine answers.

    engine, environment: changes to what the image says.
    """

    request: GoldenRequest
    engine: dict[str, EngineValue] = msgspec.field(default_factory=dict)
    environment: dict[str, str] = msgspec.field(default_factory=dict)


def engine_parts(request: GoldenRequest) -> tuple[EnginePart, ...]:
    """Return the parts of ``request`` in its order: the image's own engine, then the batch-invariant one."""
    own = tuple(lane for lane in request.lanes if not lane.batch_invariant)
    invariant = tuple(lane for lane in request.lanes if lane.batch_invariant)
    if not invariant:
        return (EnginePart(request=request),)
    last = EnginePart(request=_with(request, invariant), engine=batching({}), environment={INVARIANT: "1"})
    return (EnginePart(request=_with(request, own)), last) if own else (last,)


def _with(request: GoldenRequest, lanes: tuple[Lane, ...]) -> GoldenRequest:
    return msgspec.structs.replace(request, lanes=lanes)


def batching(engine: Mapping[str, EngineValue]) -> dict[str, EngineValue]:
    """Return engine settings with which what is asked together is really computed together."""
    return {**engine, "max_num_seqs": _BATCH}


def merged_output(outputs: Sequence[RunnerOutput]) -> RunnerOutput:
    """Return the answers of all parts as one; what was seen inside is that of the first.

    Raises: ValueError where the engines loaded other weights or drew other random numbers.
    """
    first, *others = outputs
    for other in others:
        if (other.weights, other.canaries) != (first.weights, first.canaries):
            raise ValueError("the batch-invariant engine loaded other weights than the first one")
        first = msgspec.structs.replace(
            first,
            completions=first.completions + other.completions,
            vocabulary=first.vocabulary | other.vocabulary,
            seconds=first.seconds | {f"batch-invariant {name}": s for name, s in other.seconds.items()},
        )
    return first
