"""What an image demands, held against its locks and a machine: one Finding per rule."""

import re
from collections.abc import Iterable, Iterator
from enum import StrEnum

import msgspec
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from repro_image.core.fingerprint import Host
from repro_image.core.lockfile import DebianLock, LockedWheel, Locks
from repro_image.core.project import ImageSpec

# Machine names of uname -> the architecture of an OCI platform.
_OCI_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
# The same architecture in a wheel's platform tag.
_WHEEL_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
# PEP 513, 571 and 599: names for manylinux_2_5, 2_12 and 2_17.
_OLD_MANYLINUX = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
# The kernel keeps some memory to itself: a machine sold with 16 GiB shows more than 15.
_KERNEL_SHARE = 1 / 16
_NAMES_SHOWN = 3


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule, applied.

    rule:   key in image.toml, or what was looked at in the locks.
    source: file that the rule comes from.
    fix:    what to do; empty when the rule is met.
    """

    rule: str
    found: str
    needed: str
    level: Level
    source: str
    fix: str = ""


def check_constraints(
    image: ImageSpec, locks: Locks | None, host: Host, *, strict: bool = False
) -> tuple[Finding, ...]:
    """Return a finding for each rule: known-bad is an error, unknown a warning, or an error when ``strict``.

    locks: None before the first lock; then only the machine is checked.
    """
    findings = [*_machine(image, host), *(_locks(image, locks) if locks else [_not_locked()])]
    if strict:
        findings = [
            msgspec.structs.replace(finding, level=Level.ERROR) if finding.level is Level.WARNING else finding
            for finding in findings
        ]
    return tuple(findings)


def _machine(image: ImageSpec, host: Host) -> Iterator[Finding]:
    yield _platform(image, host)
    if image.constraints.cpu_flags:
        yield _cpu_flags(image.constraints.cpu_flags, host)
    if image.constraints.memory_gib is not None:
        yield _memory("constraints.memory_gib", image.constraints.memory_gib, host, too_small=Level.ERROR)
    # A limit above what the machine has is no harm by itself: it only cannot be used up.
    yield _memory("golden.memory_gib", image.golden.memory_gib, host, too_small=Level.WARNING)
    yield _threads(image, host)


def _platform(image: ImageSpec, host: Host) -> Finding:
    found = f"linux/{_OCI_ARCHITECTURES.get(host.architecture, host.architecture or 'unknown')}"
    return _toml_finding(
        "platform",
        found=found,
        needed=image.platform,
        level=Level.OK if found == image.platform else Level.ERROR,
        fix=f"use a machine of {image.platform}; vLLM under emulation is no reference",
    )


def _cpu_flags(needed: tuple[str, ...], host: Host) -> Finding:
    missing = [flag for flag in needed if flag not in host.flags]
    found = f"lacks {', '.join(missing)}" if missing else "all of them"
    if not host.flags:
        found = "unknown"
    return _toml_finding(
        "constraints.cpu_flags",
        found=found,
        needed=", ".join(needed),
        level=_level(is_known=bool(host.flags), is_met=not missing),
        fix="use a processor that has them (`repro-image fingerprint` shows this one's)",
    )


def _memory(rule: str, needed_gib: int, host: Host, *, too_small: Level) -> Finding:
    enough = host.memory_bytes >= needed_gib * 2**30 * (1 - _KERNEL_SHARE)
    unknown = host.memory_bytes == 0
    return _toml_finding(
        rule,
        found="unknown" if unknown else f"{host.memory_bytes / 2**30:.1f} GiB",
        needed=f"{needed_gib} GiB",
        level=Level.WARNING if unknown else Level.OK if enough else too_small,
        fix="use a machine with more memory, or lower the value if the image runs with less",
    )


def _threads(image: ImageSpec, host: Host) -> Finding:
    cores = host.cpus // max(1, host.threads_per_core)
    return _toml_finding(
        "golden.threads",
        found=f"{cores} whole cores" if host.cpus else "unknown",
        needed=f"{image.golden.threads} whole cores",
        level=_level(is_known=host.cpus > 0, is_met=cores >= image.golden.threads),
        fix="use a machine with more cores, or lower golden.threads (a new numeric class)",
    )


def _locks(image: ImageSpec, locks: Locks) -> Iterator[Finding]:
    wheels = locks.requirements.wheels
    tags = {wheel.name: _tags(wheel) for wheel in wheels}
    yield _python(image, locks)
    yield _wheel_python(image, tags)
    yield _wheel_architecture(image, tags)
    yield _wheel_glibc(tags, locks.debian)


def _not_locked() -> Finding:
    return Finding(
        rule="locks",
        found="none",
        needed="locks",
        level=Level.WARNING,
        source="locks",
        fix="run `repro-image lock`; until then only the machine can be checked",
    )


def _python(image: ImageSpec, locks: Locks) -> Finding:
    found = locks.requirements.python
    return _lock_finding(
        "python of the lock",
        found=found,
        needed=image.python.version,
        level=Level.OK if found.startswith(f"{image.python.version}.") else Level.ERROR,
    )


def _wheel_python(image: ImageSpec, tags: dict[str, frozenset[Tag]]) -> Finding:
    minor = int(image.python.version.partition(".")[2])
    wrong = [name for name, own in tags.items() if not any(_runs_on(tag, minor) for tag in own)]
    return _lock_finding(
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
    return _lock_finding(
        "architecture of the wheels",
        found=_named(wrong, "made for another") if wrong else "all of them",
        needed=needed,
        level=Level.ERROR if wrong else Level.OK,
    )


def _wheel_glibc(tags: dict[str, frozenset[Tag]], debian: DebianLock) -> Finding:
    """Return whether the root's C library is new enough for every wheel.

    A plain ``linux_x86_64`` tag promises nothing, so its wheel is unknown.
    """
    rule, root = "glibc of the wheels", _glibc_of(debian)
    floors = {name: _glibc_floor(own) for name, own in tags.items()}
    unknown = [name for name, floor in floors.items() if floor is None]
    known = {name: floor for name, floor in floors.items() if floor is not None}
    newest = max(known.values(), default=(0, 0))
    needed = ".".join(map(str, newest)) + " or newer" if newest > (0, 0) else "any"
    if root is None:
        return _lock_finding(rule, found="no libc6 is locked", needed=needed, level=Level.WARNING)
    found = ".".join(map(str, root))
    wrong = [name for name, floor in known.items() if floor > root]
    if wrong:
        found += f", too old for {_few(wrong)}"
    elif unknown:
        found += f"; not said by {_few(unknown)}"
    level = Level.ERROR if wrong else Level.WARNING if unknown else Level.OK
    return _lock_finding(rule, found=found, needed=needed, level=level)


def _glibc_of(debian: DebianLock) -> tuple[int, int] | None:
    versions = [package.version for package in debian.packages if package.name == "libc6"]
    match = re.match(r"(\d+)\.(\d+)", versions[0]) if versions else None
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


def _level(*, is_known: bool, is_met: bool) -> Level:
    if not is_known:
        return Level.WARNING
    return Level.OK if is_met else Level.ERROR


def _toml_finding(rule: str, *, found: str, needed: str, level: Level, fix: str) -> Finding:
    fix = "" if level is Level.OK else fix
    return Finding(rule=rule, found=found, needed=needed, level=level, source="image.toml", fix=fix)


def _lock_finding(rule: str, *, found: str, needed: str, level: Level) -> Finding:
    fix = "" if level is Level.OK else "run `repro-image lock`, or change the requirement or the base"
    return Finding(rule=rule, found=found, needed=needed, level=level, source="requirements.txt", fix=fix)


def _named(names: list[str], what: str) -> str:
    return f"{_few(names)} {'is' if len(names) == 1 else 'are'} {what}"


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = len(listed) - _NAMES_SHOWN
    return ", ".join(listed[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
