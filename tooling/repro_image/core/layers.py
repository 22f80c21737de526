"""Which wheel goes into which layer, so that a bump of one package changes one layer."""

import hashlib
from collections.abc import Sequence

import msgspec

from repro_image.core.lockfile import LockedWheel, print_pin

# A wheel of this size is rebuilt, pushed and pulled often enough to be worth a layer of its own.
HEAVY_BYTES = 16 * 2**20
BUCKETS = 4


class LayerGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The wheels of one layer. name: also the stage's name and the folder of its wheels in the build
    context.
    """

    name: str
    wheels: tuple[LockedWheel, ...]

    @property
    def size_bytes(self) -> int:
        return sum(wheel.size_bytes for wheel in self.wheels)

    @property
    def requirements(self) -> str:
        """The group's slice of the lock, as an installer reads it."""
        return "".join(print_pin(wheel) + "\n" for wheel in self.wheels)


def layer_groups(wheels: Sequence[LockedWheel]) -> tuple[LayerGroup, ...]:
    """Return the layers of ``wheels``, bottom first: heavy ones alone, light ones in buckets.

    A light wheel's bucket follows from its name alone, so adding or bumping one leaves the other buckets as
    they
    are. Every wheel is in exactly one group.
    """
    heavy = [LayerGroup(name=f"wheel-{w.name}", wheels=(w,)) for w in wheels if w.size_bytes >= HEAVY_BYTES]
    heavy.sort(key=lambda group: (-group.size_bytes, group.name))
    buckets: dict[int, list[LockedWheel]] = {}
    for wheel in sorted(wheels, key=lambda wheel: wheel.name):
        if wheel.size_bytes < HEAVY_BYTES:
            buckets.setdefault(_bucket(wheel.name), []).append(wheel)
    light = [
        LayerGroup(name=f"bucket-{number}", wheels=tuple(group)) for number, group in sorted(buckets.items())
    ]
    return (*heavy, *light)


def _bucket(name: str) -> int:
    return hashlib.sha256(name.encode()).digest()[0] % BUCKETS
