"""What an image demands of a machine: as image.toml and the locks say, or its own labels."""

from typing import Annotated, TypeAlias

import msgspec
from packaging.version import InvalidVersion, Version

from repro_image.core.compatibility import (
    Architecture,
    DriverText,
    PtxKernels,
    Tables,
    WheelRow,
    architecture_order,
    is_code_for,
    ptx_order,
)
from repro_image.core.engines import INVARIANT
from repro_image.core.gpu import MajorMinor
from repro_image.core.lockfile import LockedWheel, Locks
from repro_image.core.project import DriverRange, FlagName, GpuName, ImageSpec, Positive
from repro_image.core.suite import left_out

# The libraries whose kernels a run cannot do without.
KERNEL_WHEELS = ("torch", "vllm")
Platform: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\Alinux/[a-z0-9]{1,20}\Z")]


class GpuDemands(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an image for GPUs demands of them and of their driver.

    models, count, memory_gib, driver: as image.toml's ``[gpu]`` has them.
    cuda:         release of the CUDA runtime in the locked wheels; None where they do not tell.
    driver_floor: oldest driver that runs this CUDA; None where no row says it.
    capability:   oldest compute capability that the engine's settings work with; None: any.
    code:         architectures that all kernel libraries have machine code for; empty where no row says it.
    ptx:          kernels that the driver compiles for some GPUs.
    """

    models: tuple[GpuName, ...] = ()
    count: Positive = 1
    memory_gib: Positive | None = None
    driver: DriverRange | None = None
    tensor_parallel: Positive = 1
    cuda: MajorMinor | None = None
    driver_floor: DriverText | None = None
    capability: MajorMinor | None = None
    code: tuple[Architecture, ...] = ()
    ptx: tuple[PtxKernels, ...] = ()


class Demands(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an image demands of a machine. None: nothing.

    golden_memory_gib, threads: of the golden run.
    gpu:        None for an image that needs no GPU.
    is_foreign: read from labels: whoever made the image may have made it to do harm.
    """

    platform: Platform | None = None
    cpu_flags: tuple[FlagName, ...] = ()
    memory_gib: Positive | None = None
    golden_memory_gib: Positive | None = None
    threads: Positive | None = None
    gpu: GpuDemands | None = None
    is_foreign: bool = False


def demands_of(image: ImageSpec, locks: Locks | None, tables: Tables) -> Demands:
    """Return what the image demands. locks: None before the first lock; then only image.toml speaks."""
    return Demands(
        platform=image.platform,
        cpu_flags=image.constraints.cpu_flags,
        memory_gib=image.constraints.memory_gib,
        golden_memory_gib=image.golden.memory_gib,
        threads=image.golden.threads,
        gpu=_gpu_demands(image, locks.requirements.wheels if locks else (), tables),
    )


def _gpu_demands(image: ImageSpec, wheels: tuple[LockedWheel, ...], tables: Tables) -> GpuDemands | None:
    if image.gpu is None:
        return None
    rows = kernel_rows(wheels, tables)
    cuda = cuda_of(wheels, tables)
    toolkit = tables.toolkit_row(cuda) if cuda else None
    return GpuDemands(
        models=image.gpu.models,
        count=image.gpu.count,
        memory_gib=image.gpu.memory_gib,
        driver=image.gpu.driver,
        tensor_parallel=image.tensor_parallel,
        cuda=cuda,
        driver_floor=toolkit.floor if toolkit else None,
        capability=_capability(image, tables),
        code=common_code(tuple(rows.values())) if len(rows) == len(KERNEL_WHEELS) else (),
        ptx=tuple(sorted({kernels for row in rows.values() for kernels in row.ptx or ()}, key=ptx_order)),
    )


def is_served(demands: GpuDemands, capability: str) -> bool | None:
    """Return whether a GPU of ``capability`` is new enough and finds machine code; None: no row says it."""
    floor = demands.capability or "0.0"
    if architecture_order(capability) < architecture_order(floor):
        return False
    return any(is_code_for(code, capability) for code in demands.code) if demands.code else None


def _capability(image: ImageSpec, tables: Tables) -> str | None:
    golden = image.golden
    pairs = (*golden.engine.items(), *golden.environment.items())
    settings = {f"{key}={value}" for key, value in pairs}
    if left_out(golden.suite, on_gpu=False):  # lanes that are asked of a batch-invariant engine
        settings.add(f"{INVARIANT}=1")
    floors = [row.capability for row in tables.setting if row.setting in settings]
    return max(floors, key=architecture_order, default=None)


def kernel_rows(wheels: tuple[LockedWheel, ...], tables: Tables) -> dict[str, WheelRow]:
    """Return the rows of the locked kernel libraries, by name; one without a row is left out."""
    found = {wheel.name: tables.wheel_row(wheel) for wheel in wheels if wheel.name in KERNEL_WHEELS}
    return {name: row for name, row in found.items() if row is not None}


def common_code(rows: tuple[WheelRow, ...]) -> tuple[str, ...]:
    """Return the architectures whose GPUs find machine code in every one of ``rows``.

    8.9 is one of them where one library has code for 8.9 and the other for 8.6: that runs there, too.
    """
    every = sorted({a for row in rows for a in row.code}, key=architecture_order)
    return tuple(a for a in every if all(any(is_code_for(own, a) for own in row.code) for row in rows))


def cuda_of(wheels: tuple[LockedWheel, ...], tables: Tables) -> str | None:
    """Return the CUDA release of the locked runtime: as torch's row says, else as the runtime's version.

    Until CUDA 12 the runtime's name ends in the major: ``nvidia-cuda-runtime-cu12``.
    """
    rows = kernel_rows(wheels, tables)
    if "torch" in rows:
        return rows["torch"].cuda
    versions = [wheel.version for wheel in wheels if wheel.name.startswith("nvidia-cuda-runtime")]
    return release_of(versions[0]) if versions else None


def release_of(version: str) -> str | None:
    """Return the CUDA release of a toolkit wheel's version: ``13.0`` of ``13.0.96``."""
    try:
        numbers = Version(version).release
    except InvalidVersion:
        return None
    return f"{numbers[0]}.{numbers[1]}" if len(numbers) > 1 else None
