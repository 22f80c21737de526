"""This machine, read from /proc, /sys, /etc and NVML; what is missing there is left empty, never an error."""

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from repro_image.adapters.nvml import read_nvidia
from repro_image.core.fingerprint import Host
from repro_image.errors import InvalidFileError

_ROOT = Path("/")
_CPUS = "sys/devices/system/cpu"
# The first comes with the toolkit; older ones and those of some distributions have the second only.
_TOOLKIT_COMMANDS = (("nvidia-ctk", "--version"), ("nvidia-container-cli", "--version"))


class CpuInfo(NamedTuple):
    """The first processor of /proc/cpuinfo. Numbers that it does not have are 0.

    threads_per_core: as it says itself; /sys, where it is there, knows better.
    """

    vendor: str
    family: int
    model: int
    name: str
    stepping: int
    microcode: str
    flags: tuple[str, ...]
    threads_per_core: int


def read_host(root: Path = _ROOT) -> Host:
    """Return this machine; ``root`` is where its files are looked up."""
    info = parse_cpuinfo(_read(root / "proc/cpuinfo"))
    cpus = allowed_cpus()
    nvidia, gpus = read_nvidia()
    return Host(
        architecture=platform.machine(),
        cpu_vendor=info.vendor,
        cpu_family=info.family,
        cpu_model=info.model,
        cpu_name=info.name,
        cpu_stepping=info.stepping,
        microcode=info.microcode,
        flags=info.flags,
        cpus=len(cpus),
        threads_per_core=_threads_per_core(root, cpus[0]) or info.threads_per_core,
        memory_bytes=parse_memory(_read(root / "proc/meminfo")),
        kernel=_read(root / "proc/sys/kernel/osrelease").strip(),
        system=parse_os_release(_read(root / "etc/os-release")),
        gpus=gpus,
        nvidia=nvidia,
        container_toolkit=_container_toolkit(),
        l2_kib=_l2_kib(root, cpus[0]),
    )


def available_memory_bytes(root: Path = _ROOT) -> int:
    """Return how much memory a new program can take without swapping; 0 where the system does not tell."""
    return parse_memory(_read(root / "proc/meminfo"), field="MemAvailable")


def read_host_file(path: Path) -> Host:
    """Return the machine that `repro-image fingerprint --json` described. Raises: InvalidFileError."""
    fix = "write it on that machine with `repro-image fingerprint --json`"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Host)
    except OSError as error:
        raise InvalidFileError(error.strerror or str(error), path=str(path), fix=fix) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidFileError(f"not a fingerprint: {error}", path=str(path), fix=fix) from error


def whole_cores(count: int, root: Path = _ROOT) -> str | None:
    """Return a cpuset of ``count`` whole cores, such as ``0,2``, or None when this process may use fewer.

    One hardware thread per core: OpenMP waits spin, and two of them on one core slow each other down.
    """
    return choose_cores(count, [(cpu, _siblings(root, cpu)) for cpu in allowed_cpus()])


def allowed_cpus() -> tuple[int, ...]:
    """Return the logical processors that this process may use, sorted."""
    return tuple(sorted(os.sched_getaffinity(0)))


def choose_cores(count: int, cpus: Iterable[tuple[int, tuple[int, ...]]]) -> str | None:
    """Return the first ``count`` cores as a cpuset, or None.

    cpus: logical processors, each with all hardware threads of its core, itself included or not.
    """
    chosen: list[int] = []
    taken: set[int] = set()
    for cpu, siblings in cpus:
        if cpu not in taken:
            chosen.append(cpu)
            taken.update(siblings, (cpu,))
    return ",".join(map(str, chosen[:count])) if len(chosen) >= count else None


def parse_cpuinfo(text: str) -> CpuInfo:
    """Return the first processor of /proc/cpuinfo, of x86 or Arm; empty fields for any other."""
    first = text.strip().split("\n\n")[0]
    lines = (line.partition(":") for line in first.splitlines())
    fields = {key.strip().lower(): value.strip() for key, _, value in lines}
    siblings, cores = _number(fields.get("siblings")), _number(fields.get("cpu cores"))
    return CpuInfo(
        vendor=fields.get("vendor_id") or fields.get("cpu implementer", ""),
        family=_number(fields.get("cpu family") or fields.get("cpu architecture")),
        model=_number(fields.get("model") or fields.get("cpu part")),
        name=fields.get("model name", ""),
        stepping=_number(fields.get("stepping") or fields.get("cpu revision")),
        microcode=fields.get("microcode", ""),
        flags=tuple(sorted(set((fields.get("flags") or fields.get("features", "")).split()))),
        threads_per_core=max(1, siblings // cores) if cores else 1,
    )


def parse_memory(text: str, *, field: str = "MemTotal") -> int:
    """Return the bytes of a field of /proc/meminfo, 0 where it is missing."""
    match = re.search(rf"^{field}:\s+([0-9]+) kB$", text, re.MULTILINE)
    return 1024 * int(match[1]) if match else 0


def parse_os_release(text: str) -> str:
    """Return the system's name for people, such as ``Debian GNU/Linux 12 (bookworm)``."""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return fields.get("PRETTY_NAME", fields.get("NAME", "Linux")).strip("\"'")


def parse_toolkit_version(text: str) -> str | None:
    """Return ``1.17.8`` of what ``nvidia-ctk --version`` or ``nvidia-container-cli --version`` prints."""
    match = re.search(r"version:? v?([0-9]+(?:\.[0-9]+)+(?:[-~]rc\.[0-9]+)?)", text)
    return match[1] if match else None


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Return the processors of a kernel list such as ``0-2,5``; empty for anything else."""
    if not re.fullmatch(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*", text.strip()):
        return ()
    ends = [part.split("-") for part in text.strip().split(",")]
    return tuple(cpu for end in ends for cpu in range(int(end[0]), int(end[-1]) + 1))


def _number(text: str | None) -> int:
    try:
        return int(text or "0", 0)  # Arm writes 0xd0c
    except ValueError:
        return 0


def _siblings(root: Path, cpu: int) -> tuple[int, ...]:
    return parse_cpu_list(_read(root / _CPUS / f"cpu{cpu}/topology/thread_siblings_list"))


def _threads_per_core(root: Path, cpu: int) -> int:
    return len(_siblings(root, cpu))


def _l2_kib(root: Path, cpu: int) -> int:
    """Return the size of the second-level cache that ``cpu`` has, or 0."""
    for cache in sorted((root / _CPUS / f"cpu{cpu}/cache").glob("index*")):
        if _read(cache / "level").strip() == "2" and _read(cache / "type").strip() != "Instruction":
            size = re.fullmatch(r"([0-9]+)K", _read(cache / "size").strip())
            return int(size[1]) if size else 0
    return 0


def _container_toolkit() -> str | None:
    for command in _TOOLKIT_COMMANDS:
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if (version := parse_toolkit_version(run.stdout)) is not None:
            return version
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
