"""Fingerprint: what has to be equal before two goldens can be compared, what is compared, and what is only
noted.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from repro_image.core.canonical import canonical_digest
from repro_image.core.gpu import Gpu, NvidiaDriver
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
    l2_kib:     second-level cache of one core, half of which cuts attention into tiles; 0 where unknown.
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
    l2_kib: int = 0

    @property
    def digest(self) -> str:
        fields = msgspec.to_builtins(self)
        if not self.l2_kib:
            del fields["l2_kib"]  # a class is what it was before this was looked at
        return canonical_digest(fields)

    @property
    def machine(self) -> str:
        known = f", {self.capability}" if self.capability else ""  # PyTorch tells it, inside
        return f"{self.vendor} family {self.family} model {self.model}{known}"

    def describe(self) -> str:
        """Return what it is, for people."""
        return f"{self.machine}, {self.threads} threads"


class CudaClass(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="cuda"
):
    """The numeric class of a GPU run. The driver is noted beside it: by itself it splits no results.

    gpu:        name as the driver prints it.
    sm_count:   multiprocessors, which kernels size their work by; 0 where it is not known before a run.
    memory_gib: as the driver shows it, rounded: 80 for an H100 of 80 GB, 45 for an L40S of 48.
    count:      GPUs that the run sees.
    """

    gpu: str
    compute_capability: str
    sm_count: int
    memory_gib: int
    count: int
    tensor_parallel: int = 1

    @property
    def digest(self) -> str:
        return canonical_digest(self)

    @property
    def machine(self) -> str:
        """Return what it is, for people."""
        parts = (
            f"{self.count} x {self.gpu}",
            f"compute capability {self.compute_capability}",
            f"{self.sm_count} multiprocessors",
            f"{self.memory_gib} GiB",
            f"tensor parallel {self.tensor_parallel}",
        )
        return ", ".join(parts)

    def describe(self) -> str:
        return self.machine


NumericClass: TypeAlias = CpuClass | CudaClass


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

    flags:             all instruction-set flags of /proc/cpuinfo, sorted.
    l2_kib:            second-level cache of one core; 0 where the system does not tell.
    nvidia:            None where NVIDIA's driver is not installed.
    container_toolkit: version of the NVIDIA Container Toolkit, or None.
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
    gpus: tuple[Gpu, ...] = ()
    nvidia: NvidiaDriver | None = None
    container_toolkit: str | None = None
    l2_kib: int = 0


def without_passing(host: Host) -> Host:
    """Return ``host`` without what no record must keep: who used its GPUs just then, and serial numbers."""
    gpus = [msgspec.structs.replace(gpu, uuid="", used_bytes=0, processes=()) for gpu in host.gpus]
    return msgspec.structs.replace(host, gpus=tuple(gpus))


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """numeric_class decides whether bits may be compared; recorded decides nothing."""

    numeric_class: NumericClass
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
        l2_kib=host.l2_kib,
    )


def cuda_class(gpus: Sequence[Gpu], *, tensor_parallel: int = 1) -> CudaClass:
    """Return the class of a run on ``gpus``, which are of one kind and at least one."""
    first = gpus[0]
    return CudaClass(
        gpu=first.name,
        compute_capability=first.compute_capability or "",
        sm_count=first.sm_count or 0,
        memory_gib=first.memory_gib,
        count=len(gpus),
        tensor_parallel=tensor_parallel,
    )


# What only a run itself can see, and what the system does not tell: unknown, it matches any.
_UNKNOWN = {"capability": "", "sm_count": 0, "l2_kib": 0}


def class_differences(expected: NumericClass, found: NumericClass) -> tuple[tuple[str, Any, Any], ...]:
    """Return (field, expected, found) for each differing field; what is unknown before a run matches any."""
    if type(expected) is not type(found):
        return (("kind", _kind(expected), _kind(found)),)
    differences = []
    for field in expected.__struct_fields__:
        a, b = getattr(expected, field), getattr(found, field)
        if a != b and not (field in _UNKNOWN and _UNKNOWN[field] in (a, b)):
            differences.append((field, a, b))
    return tuple(differences)


def _kind(numeric_class: NumericClass) -> str:
    return str(numeric_class.__struct_config__.tag)
