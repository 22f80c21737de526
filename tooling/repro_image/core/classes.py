"""How far apart the goldens of an epoch's numeric classes are: what one image answered in two places."""

import msgspec

from repro_image.core.comparison import compare_across
from repro_image.core.differences import Rate
from repro_image.core.epoch import ClassGolden
from repro_image.core.fingerprint import class_differences
from repro_image.core.golden import LEVELS, Golden


class Apart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two classes of one epoch.

    a, b:    digests of the classes; ``a`` was recorded first.
    fields:  in which the classes differ.
    levels:  level -> whether both answered the same.
    verdict: as of `verify --across`; None, with the reason in ``detail``, where a golden cannot be read.
    flips:   likeliest tokens that differ, per replayed token that both were fed.
    median_nats: median change of the log-probability.
    """

    a: str
    b: str
    fields: tuple[str, ...]
    levels: dict[str, bool]
    verdict: str | None
    reason: str | None
    detail: str
    flips: Rate | None = None
    median_nats: float | None = None


def apart(a: ClassGolden, ours: Golden, b: ClassGolden, theirs: Golden) -> Apart:
    """Return how far the two classes' recorded answers are apart.

    Each was fed its own answers in the replay, so a prompt counts up to the first token that differs. The
    noise floor of ``a`` judges, unless that of ``b`` alone knows what rounding does.
    """
    differences = class_differences(a.fingerprint.numeric_class, b.fingerprint.numeric_class)
    floors = [entry.noise_floor for entry in (a, b) if entry.noise_floor]
    floor = next((each for each in floors if each.rounding), a.noise_floor)
    found = compare_across(ours, theirs, floor=floor, differences=differences)
    median_nats = found.differences.median_nats if found.differences else None
    return msgspec.structs.replace(
        not_compared(a, b, found.detail),
        verdict=str(found.verdict),
        reason=str(found.reason) if found.reason else None,
        flips=found.replay_flips,
        median_nats=found.across.median_nats if found.across else median_nats,
    )


def not_compared(a: ClassGolden, b: ClassGolden, detail: str) -> Apart:
    """Return what the records alone say."""
    differences = class_differences(a.fingerprint.numeric_class, b.fingerprint.numeric_class)
    return Apart(
        a=a.numeric_class,
        b=b.numeric_class,
        fields=tuple(field for field, _, _ in differences),
        levels={level: getattr(a.levels, level) == getattr(b.levels, level) for level in LEVELS},
        verdict=None,
        reason=None,
        detail=detail,
    )
