"""Two images -> everything that differs, each with its cause: config, layers, files of the merged view."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from sys import intern
from typing import Any

import msgspec

from repro_image.core.image_causes import FIXES, Cause, file_finding
from repro_image.core.image_files import FileEntry, Layer, Placed, merge, readable, removes
from repro_image.core.image_manifest import ImageDocuments

_CLOCK_FIX = "pass SOURCE_DATE_EPOCH to the build; a base from `docker import` has the time of its import"


class Side(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one image has at a path. layer: counted from 1, bottom first; mtime: seconds since 1970."""

    layer: int
    type: str
    mode: str
    owner: str
    size: int
    mtime: str
    target: str
    sha256: str | None
    xattrs: str


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that differs.

    path:   ``/path`` of a file, ``config.<key>``, or ``layer <number>``.
    fields: the columns that differ.
    a, b:   a file's columns; None for a side that lacks it, and for what is no file.
    fix:    what to change so that it comes out equal.
    """

    path: str
    cause: Cause
    fields: tuple[str, ...] = ()
    detail: str = ""
    fix: str
    a: Side | None = None
    b: Side | None = None


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a comparison. config: digest of the config, which is the image's identity."""

    name: str
    config: str
    manifest: str
    layers: int


class ImageDifference(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between images A and B.

    equal:       same config digest, or nothing differs but what is ignored.
    same_layers: how many layers both have.
    differences: without the ignored ones, sorted by path.
    ignored:     how many were left out.
    """

    equal: bool
    a: Compared
    b: Compared
    same_layers: int
    differences: tuple[Difference, ...]
    ignored: int

    @property
    def exit_code(self) -> int:
        return 0 if self.equal else 10


def compare_images(
    a: ImageDocuments, b: ImageDocuments, layers: Mapping[str, Layer], *, ignore: Sequence[str] = ()
) -> ImageDifference:
    """Return what differs from ``a`` to ``b``, in this order: config digest, diff IDs, files.

    layers: diff ID -> layer; not needed where both images have the same diff IDs.
    ignore: globs over the paths of differences; ``*`` goes across slashes.
    """
    found = [*_compression(a, b)]
    is_same = a.manifest.config.digest == b.manifest.config.digest
    if not is_same:
        found += _config(a.config_fields, b.config_fields)
        found += _layers(a, b, layers) if a.diff_ids != b.diff_ids else ()
        if all(each.cause is Cause.COMPRESSION for each in found):
            found.append(_told("config", Cause.CONFIG, "the same values, written in other bytes"))
    kept = [each for each in found if not any(fnmatchcase(each.path, pattern) for pattern in ignore)]
    return ImageDifference(
        equal=all(each.cause is Cause.COMPRESSION for each in kept),
        a=_compared(a),
        b=_compared(b),
        same_layers=(Counter(a.diff_ids) & Counter(b.diff_ids)).total(),
        differences=tuple(sorted(kept, key=lambda each: each.path)),
        ignored=len(found) - len(kept),
    )


def _compared(image: ImageDocuments) -> Compared:
    return Compared(
        name=image.name,
        config=image.manifest.config.digest,
        manifest=image.digest,
        layers=len(image.diff_ids),
    )


def _compression(a: ImageDocuments, b: ImageDocuments) -> Iterator[Difference]:
    """Yield the layers that both images have, stored in other bytes."""
    numbers = {diff_id: number for number, diff_id in enumerate(b.diff_ids)}
    for number, (diff_id, ours) in enumerate(zip(a.diff_ids, a.manifest.layers, strict=True)):
        is_here = b.diff_ids[number : number + 1] == (diff_id,)  # the same layer can stand in an image twice
        other = number if is_here else numbers.get(diff_id)
        if other is not None and b.manifest.layers[other].digest != ours.digest:
            theirs = b.manifest.layers[other]
            detail = f"same content, stored in {ours.size} bytes in A and in {theirs.size} in B"
            yield _told(_layer_name(number, other), Cause.COMPRESSION, detail)


def _config(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    ours, theirs = dict(_leaves("config", a)), dict(_leaves("config", b))
    for key in sorted(ours.keys() | theirs.keys()):
        left, right = ours.get(key), theirs.get(key)
        if left != right and not key.startswith("config.rootfs.diff_ids"):  # the files tell more
            is_time = key.rpartition(".")[2] == "created"
            cause, fix = (Cause.TIME, _CLOCK_FIX) if is_time else (Cause.CONFIG, FIXES[Cause.CONFIG])
            detail = f"{_short(left)} in A, {_short(right)} in B"
            yield Difference(path=key, cause=cause, detail=detail, fix=fix)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the full path and value of each plain value in ``value``; empty lists and objects count."""
    waiting = [(path, value)]
    while waiting:
        above, each = waiting.pop()
        below = each.items() if isinstance(each, dict) else enumerate(each) if isinstance(each, list) else ()
        pairs = [(f"{above}.{key}", inner) for key, inner in below]
        waiting += pairs
        if not pairs:
            yield above, each


def _short(value: Any) -> str:
    return "nothing" if value is None else f"{value!r:.200}"


def _layers(a: ImageDocuments, b: ImageDocuments, layers: Mapping[str, Layer]) -> Iterator[Difference]:
    """Yield the files of the merged views that differ, then the layers whose difference no file tells."""
    stacks = [[layers[diff_id] for diff_id in image.diff_ids] for image in (a, b)]
    ours, theirs = (merge(stack) for stack in stacks)
    told: tuple[set[int], set[int]] = (set(), set())
    for path in ours.keys() | theirs.keys():
        placed = ours.get(path), theirs.get(path)
        difference = _file(path, *placed)
        if difference is not None:
            yield difference
            for numbers, stack, seen in zip(told, stacks, placed, strict=True):
                numbers |= {seen.layer} if seen else _removers(stack, path)
    shared = [
        [each for each in x if each in y] for x, y in ((a.diff_ids, b.diff_ids), (b.diff_ids, a.diff_ids))
    ]
    if shared[0] != shared[1]:
        yield _told("layers", Cause.ORDER, "layers that both have are stacked in another order")
    pairs = _pairs(a.diff_ids, b.diff_ids)
    if pairs is None:
        yield _told("layers", Cause.LAYERS, f"{len(a.diff_ids)} in A, {len(b.diff_ids)} in B")
    for one, other in pairs or ():
        is_told = one in told[0] or other in told[1]
        sides = layers[a.diff_ids[one]], layers[b.diff_ids[other]]
        yield from _layer(_layer_name(one, other), *sides, is_told=is_told)


def _removers(stack: Sequence[Layer], path: str) -> set[int]:
    return {
        number
        for number, layer in enumerate(stack)
        if (layer.removed or layer.opaque) and removes(layer, path)
    }


def _file(path: str, left: Placed | None, right: Placed | None) -> Difference | None:
    finding = file_finding(path, left and left.entry, right and right.entry)
    if finding is None:
        return None
    return Difference(
        path=readable(f"/{path}"),
        cause=finding.cause,
        fields=finding.fields,
        detail=finding.detail,
        fix=finding.fix,
        a=_side(left) if left else None,
        b=_side(right) if right else None,
    )


def _pairs(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]] | None:
    """Return which layer of ``a`` stands for which of ``b``, of those that only one side has; None when their
    numbers differ.
    """
    only = [
        [number for number, diff_id in enumerate(ours) if diff_id not in theirs]
        for ours, theirs in ((a, b), (b, a))
    ]
    return list(zip(*only, strict=True)) if len(a) == len(b) and len(only[0]) == len(only[1]) else None


def _layer_name(one: int, other: int) -> str:
    """Return what two layers are called that stand for each other, from whichever side they are looked at."""
    return f"layer {one + 1}" if one == other else "layers {} and {}".format(*sorted((one + 1, other + 1)))


def _layer(path: str, a: Layer, b: Layer, *, is_told: bool) -> Iterator[Difference]:
    """Yield why two layers differ although the files seen of them may be equal. path: names them."""
    common = [[name for name in side.entries if name in other.entries] for side, other in ((a, b), (b, a))]
    if common[0] != common[1]:
        yield _told(path, Cause.ORDER, "the files that both have stand in another order in the archive")
    elif not is_told:
        yield _hidden(path, a, b) or _told(path, Cause.ARCHIVE, "same files, other bytes of the archive")


def _hidden(path: str, a: Layer, b: Layer) -> Difference | None:
    """Return the first file that differs between two layers and that a layer above hides."""
    for name in sorted(a.entries.keys() | b.entries.keys()):
        finding = file_finding(name, a.entries.get(name), b.entries.get(name))
        if finding is not None:
            detail = readable(f"/{name} differs, hidden by a layer above it")
            return Difference(
                path=path, cause=finding.cause, fields=finding.fields, detail=detail, fix=finding.fix
            )
    if (a.removed, a.opaque) != (b.removed, b.opaque):
        return _told(path, Cause.CONTENT, "it removes other files of the layers below")
    return None


def _told(path: str, cause: Cause, detail: str) -> Difference:
    return Difference(path=path, cause=cause, detail=detail, fix=FIXES[cause])


def _side(placed: Placed) -> Side:
    entry: FileEntry = placed.entry
    return Side(
        layer=placed.layer + 1,
        type=entry.kind,
        mode=intern(f"{entry.mode:04o}"),  # few values, and there can be tens of thousands of sides
        owner=intern(f"{entry.uid}:{entry.gid}"),
        size=entry.size,
        mtime=intern(_moment(entry.mtime_ns)),
        target=readable(entry.link),
        sha256=entry.sha256.hex() if entry.sha256 else None,
        xattrs=readable(entry.xattrs),
    )


def _moment(nanoseconds: int) -> str:
    """Return seconds since 1970, with the fraction where there is one."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{seconds}.{rest:09}".rstrip("0") if rest else str(seconds)
