"""Rules on a machine's processor and memory."""

from collections.abc import Iterator

from repro_image.core.demands import Demands
from repro_image.core.finding import Finding, Level, level_of, make_finding
from repro_image.core.fingerprint import Host

# Machine names of uname -> the architecture of an OCI platform.
_OCI_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
# The kernel keeps some memory to itself: a machine sold with 16 GiB shows more than 15.
_KERNEL_SHARE = 1 / 16


def machine_findings(demands: Demands, host: Host) -> Iterator[Finding]:
    """Yield a finding for each thing that the image demands of any machine."""
    if demands.platform is not None:
        yield _platform(demands.platform, host)
    if demands.cpu_flags:
        yield _cpu_flags(demands.cpu_flags, host)
    if demands.memory_gib is not None:
        yield _memory("constraints.memory_gib", demands.memory_gib, host, too_small=Level.ERROR)
    if demands.golden_memory_gib is not None:
        # A limit above what the machine has is no harm by itself: it only cannot be used up.
        yield _memory("golden.memory_gib", demands.golden_memory_gib, host, too_small=Level.WARNING)
    if demands.threads is not None:
        yield _threads(demands.threads, host)


def _platform(needed: str, host: Host) -> Finding:
    found = f"linux/{_OCI_ARCHITECTURES.get(host.architecture, host.architecture or 'unknown')}"
    return _finding(
        "platform",
        found=found,
        needed=needed,
        level=Level.OK if found == needed else Level.ERROR,
        fix=f"use a machine of {needed}; vLLM under emulation is no reference",
    )


def _cpu_flags(needed: tuple[str, ...], host: Host) -> Finding:
    missing = [flag for flag in needed if flag not in host.flags]
    found = f"lacks {', '.join(missing)}" if missing else "all of them"
    return _finding(
        "constraints.cpu_flags",
        found=found if host.flags else "unknown",
        needed=", ".join(needed),
        level=level_of(is_known=bool(host.flags), is_met=not missing),
        fix="use a processor that has them (`repro-image fingerprint` shows this one's)",
    )


def _memory(rule: str, needed_gib: int, host: Host, *, too_small: Level) -> Finding:
    enough = host.memory_bytes >= needed_gib * 2**30 * (1 - _KERNEL_SHARE)
    unknown = host.memory_bytes == 0
    return _finding(
        rule,
        found="unknown" if unknown else f"{host.memory_bytes / 2**30:.1f} GiB",
        needed=f"{needed_gib} GiB",
        level=Level.WARNING if unknown else Level.OK if enough else too_small,
        fix="use a machine with more memory, or lower the value if the image runs with less",
    )


def _threads(needed: int, host: Host) -> Finding:
    cores = host.cpus // max(1, host.threads_per_core)
    return _finding(
        "golden.threads",
        found=f"{cores} whole cores" if host.cpus else "unknown",
        needed=f"{needed} whole cores",
        level=level_of(is_known=host.cpus > 0, is_met=cores >= needed),
        fix="use a machine with more cores, or lower golden.threads (a new numeric class)",
    )


def _finding(rule: str, *, found: str, needed: str, level: Level, fix: str) -> Finding:
    return make_finding(rule, found=found, needed=needed, level=level, source="image.toml", fix=fix)
