"""GPUs and their driver, as they describe themselves to a machine or a container; the choice among them."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from repro_image.core.project import GpuSpec
from repro_image.errors import GpuBusyError, NoGpuError

# An idle card has a few MiB in use, a desktop session some more; a CUDA context alone takes hundreds.
# Source: 7.8 MB on an idle A100, https://github.com/rust-nvml/nvml-wrapper/issues/57
_IDLE_BYTES = 128 * 2**20

# Such as ``9.0``: compute capability, or a CUDA version.
MajorMinor: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,3}\.[0-9]{1,2}\Z")]


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A process that holds memory of a GPU. name: empty where the driver does not tell it."""

    pid: int
    used_bytes: int
    name: str = ""


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU, as NVML describes it. What a driver or a card does not tell is None or empty.

    index:              NVML's, which follows the PCI bus.
    name:               as the driver prints it, such as ``NVIDIA H100 80GB HBM3``.
    compute_capability: such as ``9.0``.
    sm_count:           streaming multiprocessors.
    form:               ``PCIe`` or ``SXM``.
    mig:                Multi-Instance GPU is on.
    fault:              why the driver cannot read this one, such as ``GPU is lost``; the rest is then empty.
    """

    index: int
    uuid: str
    name: str
    compute_capability: MajorMinor | None
    memory_bytes: int
    used_bytes: int = 0
    sm_count: int | None = None
    form: str = ""
    ecc: bool | None = None
    mig: bool | None = None
    vbios: str = ""
    processes: tuple[GpuProcess, ...] = ()
    fault: str = ""

    @property
    def memory_gib(self) -> int:
        """Return the memory, rounded. Some cards have less than they are sold by: an L40S of 48 GB has 45."""
        return round(self.memory_bytes / 2**30)

    @property
    def is_busy(self) -> bool:
        """Whether somebody uses it. Processes are no measure: those of other containers are not told."""
        return self.used_bytes > _IDLE_BYTES

    def is_sold_with(self, size: int) -> bool:
        """Whether it is a card of ``size`` GB or more: of 24 GB it shows 22.5 GiB, the rest checks errors."""
        return self.memory_bytes >= size * 10**9

    @property
    def is_geforce(self) -> bool:
        """Consumer cards: NVIDIA's forward compatibility does not support them."""
        return "GeForce" in self.name or "TITAN" in self.name

    def describe(self) -> str:
        """Return what it is, for people; empty where a fault hides it."""
        form = f" ({self.form})" if self.form and self.form.lower() not in self.name.lower() else ""
        known = [
            f"{self.name}{form}",
            f"{self.memory_gib} GiB" if self.memory_bytes else "",
            f"compute capability {self.compute_capability}" if self.compute_capability else "",
            f"{self.sm_count} multiprocessors" if self.sm_count else "",
        ]
        return ", ".join(filter(None, known))

    def describe_use(self) -> str:
        """Return how much of its memory is in use and by whom, for people."""
        users = ", ".join(
            " ".join(filter(None, (f"pid {process.pid}", process.name, f"{process.used_bytes >> 20} MiB")))
            for process in self.processes
        )
        by = users or "no process is told: another container or user"
        return f"{self.used_bytes >> 20} MiB in use ({by})"


class NvidiaDriver(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The driver side of a machine or a container.

    version: of the kernel module, such as ``580.95.05``; empty when ``fault`` says why.
    cuda:    the newest CUDA that it speaks, such as ``13.0``, as NVML tells.
    libcuda: the CUDA version of the libcuda that a program really loads; None where none was loaded. Newer
             than ``cuda`` where a forward-compatibility package stands in.
    fault:   NVML's own words, such as ``Driver Not Loaded``; empty when all is well.
    """

    version: str
    cuda: MajorMinor | None
    libcuda: MajorMinor | None = None
    fault: str = ""

    def describe(self) -> str:
        """Return its versions or its fault, for people."""
        return self.fault or f"{self.version}, CUDA {self.cuda or 'unknown'}"


class GpuProbe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What runner/gpu_probe.py found. driver: None where NVIDIA's libraries are not installed."""

    driver: NvidiaDriver | None
    gpus: tuple[Gpu, ...]


def parse_probe(found: dict[str, Any]) -> GpuProbe:
    """Return the value of the plain ones that a probe found. Raises: msgspec.ValidationError."""
    return msgspec.convert(found, type=GpuProbe)


def choose_gpus(gpus: Sequence[Gpu], spec: GpuSpec, *, visible: str | None = None) -> tuple[Gpu, ...]:
    """Return the first ``spec.count`` GPUs of one kind that fit ``spec`` and that nobody uses.

    visible: CUDA_VISIBLE_DEVICES of the caller, with which Slurm and others share out a machine; None where
             it is not set. NVIDIA_VISIBLE_DEVICES is an order to what creates containers, and not asked here.
    Raises: GpuBusyError when only the use of GPUs stands in the way; NoGpuError.
    """
    allowed = gpus if visible is None else visible_gpus(gpus, visible)
    fitting = [gpu for gpu in allowed if not _unsuitable(gpu, spec)]
    for idle in _kinds(gpu for gpu in fitting if not gpu.is_busy):
        if len(idle) >= spec.count:
            return tuple(idle[: spec.count])
    for kind in _kinds(fitting):
        if len(kind) >= spec.count:
            raise GpuBusyError([f"{_title(gpu)}: {gpu.describe_use()}" for gpu in kind if gpu.is_busy])
    found = [f"{_title(gpu)}: {_unsuitable(gpu, spec) or 'fits'}" for gpu in allowed]
    hidden = len(gpus) - len(allowed)
    raise NoGpuError(_wish(spec), found=found, hidden=hidden)


def visible_gpus(gpus: Sequence[Gpu], visible: str) -> tuple[Gpu, ...]:
    """Return those that a value of CUDA_VISIBLE_DEVICES names, in its order, up to the first that names none.

    Numbers count as NVML does, as vLLM reads them; a UUID may be cut short.
    Source: CUDA C++ programming guide, CUDA environment variables.
    """
    named: list[Gpu] = []
    for name in filter(None, (part.strip() for part in visible.split(","))):
        matches = [
            gpu
            for gpu in gpus
            if name == str(gpu.index) or (name[:4] == "GPU-" and gpu.uuid.startswith(name))
        ]
        if len(matches) != 1:
            break
        named += matches
    return tuple(named)


def _unsuitable(gpu: Gpu, spec: GpuSpec) -> str:
    """Return why it cannot be taken, whether it is in use or not; empty when it can."""
    if gpu.fault:
        return gpu.fault
    if gpu.mig:
        return "in MIG mode"
    if spec.models and gpu.name not in spec.models:
        return "another model"
    if spec.memory_gib is not None and not gpu.is_sold_with(spec.memory_gib):
        return f"{gpu.memory_gib} GiB"
    return ""


def _kinds(gpus: Iterable[Gpu]) -> Iterable[list[Gpu]]:
    """Return the GPUs by kind, each in the order given."""
    kinds: dict[tuple[object, ...], list[Gpu]] = {}
    for gpu in gpus:
        kinds.setdefault(_kind(gpu), []).append(gpu)
    return kinds.values()


def _kind(gpu: Gpu) -> tuple[object, ...]:
    return gpu.name, gpu.compute_capability, gpu.memory_gib


def _title(gpu: Gpu) -> str:
    return f"GPU {gpu.index} {gpu.name}".rstrip()


def _wish(spec: GpuSpec) -> str:
    """Return what is asked for, such as ``2 GPUs of one kind, NVIDIA H100 PCIe, of 80 GiB or more``."""
    number = "a GPU" if spec.count == 1 else f"{spec.count} GPUs of one kind"
    models = [" or ".join(spec.models)] if spec.models else []
    memory = [f"of {spec.memory_gib} GiB or more"] if spec.memory_gib else []
    return ", ".join([number, *models, *memory])


def same_kind(gpus: tuple[Gpu, ...]) -> bool:
    """Return whether all of ``gpus`` are of one model, capability and memory."""
    return len({_kind(gpu) for gpu in gpus}) <= 1
