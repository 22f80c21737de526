"""Rules on the CUDA side of a lock, without a machine: whether the wheels agree, and what they run on."""

from collections.abc import Iterator

from repro_image.core.compatibility import GpuRow, Tables, architecture_order, major
from repro_image.core.demands import KERNEL_WHEELS, GpuDemands, cuda_of, is_served, kernel_rows, release_of
from repro_image.core.finding import Finding, Level, few, level_of, make_finding
from repro_image.core.lockfile import LockedWheel
from repro_image.core.project import ImageSpec

# Compilers that run inside the image; what a newer one writes an older driver cannot load.
_COMPILERS = ("nvidia-cuda-nvcc", "nvidia-cuda-nvrtc", "nvidia-nvjitlink", "nvidia-nvvm", "nvidia-cuda-crt")


def cuda_findings(
    image: ImageSpec, demands: GpuDemands, wheels: tuple[LockedWheel, ...], tables: Tables
) -> Iterator[Finding]:
    """Yield a finding for each rule that the lock of an image for GPUs is held to."""
    yield _cuda(wheels, tables)
    yield _floor(demands, tables)
    yield _compilers(wheels, tables)
    yield _code(demands, wheels, tables)
    yield _ptx(wheels, tables)
    if demands.models:
        yield _models(demands, tables)
    yield _run_time(image, wheels, tables)


def _cuda(wheels: tuple[LockedWheel, ...], tables: Tables) -> Finding:
    """Return whether torch, vLLM and the CUDA runtime belong to one major release."""
    rows = kernel_rows(wheels, tables)
    locked = {wheel.name: wheel for wheel in wheels}
    found = {name: rows[name].cuda if name in rows else None for name in KERNEL_WHEELS}
    found |= {
        name: release_of(wheel.version)
        for name, wheel in locked.items()
        if name.startswith("nvidia-cuda-runtime")
    }
    on_cpu = [name for name in KERNEL_WHEELS if name in locked and "+cpu" in locked[name].version]
    majors = {major(cuda) for cuda in found.values() if cuda}
    told = [
        f"{name} {'for the CPU' if name in on_cpu else cuda or 'unknown'}" for name, cuda in found.items()
    ]
    return make_finding(
        "CUDA of the wheels",
        found=", ".join(told),
        needed="one major release",
        level=level_of(
            is_known=bool(on_cpu) or len(majors) > 1 or None not in found.values(),
            is_met=not on_cpu and len(majors) == 1,
        ),
        source=_sources(wheels, tables),
        fix="require releases of torch and vllm that were built for the same CUDA; for a release that "
        "wheels.toml does not know, add its row with `make compatibility`",
    )


def _floor(demands: GpuDemands, tables: Tables) -> Finding:
    row = tables.toolkit_row(demands.cuda) if demands.cuda else None
    return make_finding(
        "driver floor of the wheels",
        found=f"CUDA {demands.cuda}: driver {row.floor} or newer"
        if row
        else f"CUDA {demands.cuda or 'unknown'}",
        needed="a known floor",
        level=level_of(is_known=row is not None, is_met=True),
        source=row.source if row else "cuda.toml",
        fix="add a row for this CUDA release to cuda.toml, with its source",
    )


def _compilers(wheels: tuple[LockedWheel, ...], tables: Tables) -> Finding:
    """Return whether the compilers of the lock are of torch's own CUDA release."""
    needed = cuda_of(wheels, tables)
    found = {wheel.name: release_of(wheel.version) for wheel in wheels if wheel.name.startswith(_COMPILERS)}
    others = [f"{name} {release}" for name, release in found.items() if release != needed]
    return make_finding(
        "CUDA compilers of the wheels",
        found=few(others) if others else "all of them" if found else "none",
        needed=f"of CUDA {needed or 'unknown'}",
        level=Level.WARNING if others else Level.OK,
        source="requirements.txt",
        fix=f"pin them to {needed}.* in the requirements: older drivers cannot load what a newer one writes",
    )


def _code(demands: GpuDemands, wheels: tuple[LockedWheel, ...], tables: Tables) -> Finding:
    rows = kernel_rows(wheels, tables)
    missing = [name for name in KERNEL_WHEELS if name not in rows]
    return make_finding(
        "compute capabilities of the wheels",
        found=f"unknown for {', '.join(missing)}" if missing else " ".join(demands.code) or "none in common",
        needed="machine code in torch and vllm",
        level=level_of(is_known=not missing, is_met=bool(demands.code)),
        source=_sources(wheels, tables),
        fix="add the rows of these wheels with `make compatibility`, or lock other releases",
    )


def _ptx(wheels: tuple[LockedWheel, ...], tables: Tables) -> Finding:
    """Return whether it is known which kernels a driver would have to compile."""
    rows = kernel_rows(wheels, tables).values()
    unknown = [row.name for row in rows if row.ptx is None]
    releases = sorted({kernels.cuda for row in rows for kernels in row.ptx or ()}, key=architecture_order)
    return make_finding(
        "PTX of the wheels",
        found=f"unknown for {', '.join(unknown)}" if unknown else f"of CUDA {', '.join(releases) or 'none'}",
        needed="known",
        level=Level.WARNING if unknown else Level.OK,
        source=_sources(wheels, tables),
        fix="read these wheels with `make compatibility`; until then a driver must be as new as their CUDA",
    )


def _models(demands: GpuDemands, tables: Tables) -> Finding:
    """Return whether each GPU model that image.toml names is known, served by the wheels and large enough."""
    rows = {name: tables.gpu_row(name) for name in demands.models}
    unknown = [name for name, row in rows.items() if row is None]
    unfit = [f"{name}: {why}" for name, row in rows.items() if row and (why := _unfit(demands, row))]
    told = ", ".join(unfit or [f"{name}: unknown" for name in unknown])
    return make_finding(
        "wheels for gpu.models",
        found=told or "code for all of them",
        needed=", ".join(demands.models),
        level=level_of(is_known=bool(unfit) or not unknown, is_met=not unfit),
        source="gpus.toml",
        fix="write the names as `nvidia-smi -L` prints them; take models out that do not fit the image",
    )


def _unfit(demands: GpuDemands, row: GpuRow) -> str:
    """Return why a model can never meet what the image demands; empty when it can."""
    if is_served(demands, row.compute_capability) is False:
        return f"compute capability {row.compute_capability} is not served"
    return f"sold with {row.memory_gb} GB" if row.memory_gb < (demands.memory_gib or 0) else ""


def _run_time(image: ImageSpec, wheels: tuple[LockedWheel, ...], tables: Tables) -> Finding:
    """Name the packages that make kernels at run time, when there is no network."""
    names = {wheel.name for wheel in wheels}
    rows = [row for row in tables.compiler if row.name in names]
    settings = {f"{key}={value}" for key, value in image.golden.environment.items()}
    open_ = [row for row in rows if row.settled is not None and row.settled not in settings]
    return make_finding(
        "kernels made at run time",
        found=", ".join(f"{row.name} {row.does}" for row in open_)
        or ", ".join(row.name for row in rows)
        or "none",
        needed="none that asks a network",
        level=Level.WARNING if open_ else Level.OK,
        source="; ".join(sorted({row.source for row in open_})) or "compilers.toml",
        fix="set " + ", ".join(row.settled or "" for row in open_) + " in [golden.environment]",
    )


def _sources(wheels: tuple[LockedWheel, ...], tables: Tables) -> str:
    told = [f"{row.name} {row.version}: {row.source}" for row in kernel_rows(wheels, tables).values()]
    return "; ".join(told) or "wheels.toml"
