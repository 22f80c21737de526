"""Fingerprint: what has to be equal before two goldens can be compared, what is compared, and what is only
noted.
"""

from typing import Any, Literal

import msgspec

from repro_image.core.canonical import canonical_digest
from repro_image.core.project import EngineValue
from repro_image.core.reference import Digest


class CpuClass(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="cpu"
):
    """The numeric class of a CPU run: what the hardware side contributes to the bits.

    vendor, family, model: as /proc/cpuinfo numbers them; kernels are chosen by them.
    flags:      instruction sets that numeric libraries dispatch on, sorted.
    capability: what torch dispatched to inside, such as ``AVX512``; empty before a run.
    threads:    OpenMP threads.
    cpus:       whole cores in the cpuset.
    """

    architecture: str
    vendor: str
    family: int
    model: int
    flags: tuple[str, ...]
    capability: str
    threads: int
    cpus: int
    tensor_parallel: int = 1

    @property
    def digest(self) -> str:
        return canonical_digest(self)


class Subject(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is being compared.

    image:       config digest.
    engine:      arguments of ``vllm.LLM`` as asked.
    resolved:    what vLLM made of them.
    environment: variables of the run that change numbers.
    model:       digest of the model folder's files.
    weights:     digest of the checksums of the loaded tensors.
    suite:       digest of the golden request.
    packages:    versions seen inside.
    """

    image: Digest
    engine: dict[str, EngineValue]
    resolved: dict[str, str]
    environment: dict[str, str]
    model: Digest
    weights: Digest
    suite: Digest
    packages: dict[str, str]


class Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine, as `repro-image fingerprint` writes it and `check --host` reads it.

    flags: all instruction-set flags of /proc/cpuinfo, sorted.
    """

    format: Literal[1] = 1
    architecture: str
    cpu_vendor: str
    cpu_family: int
    cpu_model: int
    cpu_name: str
    cpu_stepping: int
    microcode: str
    flags: tuple[str, ...]
    cpus: int
    threads_per_core: int
    memory_bytes: int
    kernel: str
    system: str
    engine: str | None = None
    buildx: str | None = None
    gpus: tuple[dict[str, str], ...] = ()


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """numeric_class decides whether bits may be compared; recorded decides nothing."""

    numeric_class: CpuClass
    subject: Subject
    host: Host
    recorded: dict[str, str]


# Instruction sets that torch, oneDNN and vLLM's kernels dispatch on; other flags change no numbers.
_NUMERIC_PREFIXES = ("amx", "avx", "f16c", "fma", "sse", "ssse", "asimd", "sve", "bf16", "i8mm")


def numeric_flags(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Return the flags that numeric libraries dispatch on, sorted."""
    return tuple(sorted(flag for flag in flags if flag.startswith(_NUMERIC_PREFIXES)))


def cpu_class(host: Host, *, threads: int, capability: str = "", tensor_parallel: int = 1) -> CpuClass:
    """Return the class that a run with ``threads`` whole cores has on ``host``.

    capability: as seen inside; leave it out to ask what can be known before a run.
    """
    return CpuClass(
        architecture=host.architecture,
        vendor=host.cpu_vendor,
        family=host.cpu_family,
        model=host.cpu_model,
        flags=numeric_flags(host.flags),
        capability=capability,
        threads=threads,
        cpus=threads,
        tensor_parallel=tensor_parallel,
    )


def class_differences(expected: CpuClass, found: CpuClass) -> tuple[tuple[str, Any, Any], ...]:
    """Return (field, expected, found) for each differing field; an unknown capability matches any."""
    differences = []
    for field in CpuClass.__struct_fields__:
        a, b = getattr(expected, field), getattr(found, field)
        if a != b and not (field == "capability" and "" in (a, b)):
            differences.append((field, a, b))
    return tuple(differences)
