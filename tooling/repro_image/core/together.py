"""What it changes in one golden that prompts were asked together instead of one by one."""

import msgspec

from repro_image.core.golden import Completion, Golden, Lane

_PARTS = {"H1": "output_ids", "H2": "topk_ids", "H3": "logprobs"}


class AskedTogether(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two lanes that asked one engine the same: ``alone`` one by one, ``together`` in one call.

    batch_invariant: the engine promises that nothing differs.
    differing:       level -> how many of ``prompts`` were answered otherwise.
    """

    alone: str
    together: str
    batch_invariant: bool
    prompts: int
    differing: dict[str, int]

    @property
    def is_broken_promise(self) -> bool:
        return self.batch_invariant and any(self.differing.values())


def asked_together(golden: Golden) -> tuple[AskedTogether, ...]:
    """Return each lane that asks an earlier lane's prompts together; none where a suite has none."""
    earlier: dict[object, Lane] = {}
    found = []
    for lane in golden.request.lanes:
        asked = _asked(lane)
        if not lane.together:
            earlier[asked] = lane
        elif asked in earlier:
            found.append(_compared(golden, earlier[asked], lane))
    return tuple(found)


def _asked(lane: Lane) -> object:
    """Return what two lanes have in common that ask one engine the same."""
    prompts = tuple((p.text, p.chat, p.token_ids, p.sampling) for p in lane.prompts)
    return lane.batch_invariant, prompts


def _compared(golden: Golden, alone: Lane, together: Lane) -> AskedTogether:
    pairs = list(zip(_answers(golden, alone), _answers(golden, together), strict=True))
    return AskedTogether(
        alone=alone.name,
        together=together.name,
        batch_invariant=together.batch_invariant,
        prompts=len(pairs),
        differing={
            level: sum(getattr(a, part) != getattr(b, part) for a, b in pairs)
            for level, part in _PARTS.items()
        },
    )


def _answers(golden: Golden, lane: Lane) -> list[Completion]:
    return [completion for completion in golden.completions if completion.lane == lane.name]
