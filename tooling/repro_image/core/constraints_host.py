"""Rules on NVIDIA's software of a machine: driver, forward compatibility, container toolkit."""

from collections.abc import Iterator, Sequence

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from repro_image.core.compatibility import Tables, is_older, major, version_of
from repro_image.core.constraints_gpu import gpu_findings
from repro_image.core.demands import Demands, GpuDemands
from repro_image.core.finding import Finding, Level, level_of, make_finding
from repro_image.core.fingerprint import Host
from repro_image.core.gpu import Gpu, NvidiaDriver

_TOOLKIT = "nvidia-container-toolkit"


def nvidia_findings(demands: Demands, host: Host, tables: Tables) -> Iterator[Finding]:
    """Yield a finding for each rule on the machine's driver, GPUs and container toolkit."""
    if demands.gpu is None:
        return
    yield _driver(host.nvidia)
    if host.nvidia is None or host.nvidia.fault:
        return  # nothing that follows could be read
    yield driver_floor(demands.gpu, host.nvidia, host.gpus, tables)
    if demands.gpu.driver is not None:
        yield _driver_range(demands.gpu.driver, host.nvidia)
    yield from gpu_findings(demands.gpu, host.gpus, host.nvidia, tables)
    yield _container_toolkit(demands, host, tables)


def _driver(driver: NvidiaDriver | None) -> Finding:
    is_met = driver is not None and not driver.fault
    fix = "use a machine with an NVIDIA GPU and its driver; `repro-image build --no-golden` needs neither"
    if driver is not None:
        fix = "restart the machine, or load the kernel module that belongs to the installed libraries"
    return make_finding(
        "NVIDIA driver",
        found="none" if driver is None else driver.fault or driver.version or "unknown",
        needed="one that answers",
        level=Level.OK if is_met else Level.ERROR,
        source="NVML",
        fix=fix,
    )


def driver_floor(
    demands: GpuDemands,
    driver: NvidiaDriver,
    gpus: Sequence[Gpu],
    tables: Tables,
    *,
    inside: NvidiaDriver | None = None,
) -> Finding:
    """Return whether the driver runs the CUDA of the locked wheels.

    inside: what a container of the image saw. A libcuda that the image brings along (forward compatibility)
            counts only where it was really loaded, and never on GeForce cards.
    """
    floor, row = demands.driver_floor, tables.toolkit_row(demands.cuda or "")
    older = is_older(driver.version, floor) if floor else None
    found, level = driver.version or "unknown", level_of(is_known=older is not None, is_met=not older)
    if older:
        level, why = _forward(demands, driver, gpus, tables, inside=inside)
        found = f"{found}; {why}"
    return make_finding(
        "driver floor",
        found=found,
        needed=f"{floor} or newer, for CUDA {demands.cuda}" if floor else "unknown",
        level=level,
        source=row.source if row else "cuda.toml",
        fix=f"install driver {floor} or newer" if floor else "add a row for this CUDA release to cuda.toml",
    )


def _forward(
    demands: GpuDemands,
    driver: NvidiaDriver,
    gpus: Sequence[Gpu],
    tables: Tables,
    *,
    inside: NvidiaDriver | None,
) -> tuple[Level, str]:
    """Return whether NVIDIA's forward compatibility bridges an old driver, and the reason.

    Source: https://docs.nvidia.com/deploy/cuda-compatibility/forward-compatibility.html
    """
    cuda = demands.cuda or ""
    if any(gpu.is_geforce for gpu in gpus):
        return Level.ERROR, "forward compatibility does not support GeForce"
    version = version_of(driver.version)
    branches = tables.forward_branches(cuda) if cuda else ()
    if version is None or version.major not in branches:
        told = ", ".join(map(str, branches)) or "none"
        return Level.ERROR, f"no branch that forward compatibility starts from ({told})"
    if inside is not None and is_older(inside.libcuda, cuda) is False:
        return Level.OK, f"forward compatibility: the image's libcuda speaks CUDA {inside.libcuda}"
    package = f"cuda-compat-{cuda.replace('.', '-')}"
    return Level.ERROR, f"a libcuda of {package} in the image could bridge it, and none was seen at work"


def _driver_range(needed: str, driver: NvidiaDriver) -> Finding:
    version = version_of(driver.version)
    return make_finding(
        "gpu.driver",
        found=driver.version or "unknown",
        needed=needed,
        level=level_of(
            is_known=version is not None,
            is_met=version is not None and SpecifierSet(needed).contains(version),
        ),
        source="image.toml",
        fix="install a driver of this range, or widen it",
    )


def _container_toolkit(demands: Demands, host: Host, tables: Tables) -> Finding:
    """Return whether the container toolkit has a known way out of a container: strangers would use it."""
    found = host.container_toolkit
    hits = [
        row for row in tables.advisory if row.subject == _TOOLKIT and is_older(found, row.fixed) is not False
    ]
    newest = max((row.fixed for row in tables.advisory if row.subject == _TOOLKIT), key=Version)
    is_known = version_of(found) is not None
    bad = Level.ERROR if demands.is_foreign and is_known else Level.WARNING
    return make_finding(
        "container toolkit",
        found=f"{found}, with {', '.join(row.id for row in hits)}"
        if is_known and hits
        else found or "unknown",
        needed=f"{newest} or newer",
        level=bad if hits else Level.OK,
        source=hits[-1].source if hits else "advisories.toml",
        fix=f"install nvidia-container-toolkit {newest} or newer; older ones let images out of containers",
    )


def inside_findings(
    demands: Demands, host: Host, driver: NvidiaDriver | None, gpus: Sequence[Gpu], tables: Tables
) -> Iterator[Finding]:
    """Yield a finding for each rule on what a container of the image sees.

    driver, gpus: as a probe inside has found them, with the libcuda that a program really loads.
    """
    if demands.gpu is None:
        return
    yield _driver_inside(driver, host.nvidia)
    if driver is None or driver.fault:
        return
    yield _libcuda(demands.gpu, driver, gpus)
    yield driver_floor(demands.gpu, driver, gpus, tables, inside=driver)
    yield _gpus_inside(demands.gpu, gpus, host.gpus)
    yield from gpu_findings(demands.gpu, gpus, driver, tables)


def _driver_inside(driver: NvidiaDriver | None, outside: NvidiaDriver | None) -> Finding:
    version = outside.version if outside else ""
    is_met = driver is not None and not driver.fault and driver.version == version
    return make_finding(
        "driver inside",
        found="none" if driver is None else driver.fault or driver.version,
        needed=f"{version or 'that of the machine'}, as outside",
        level=Level.OK if is_met else Level.ERROR,
        source="NVML in a container",
        fix="run `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`, again after each change of driver",
    )


def _libcuda(demands: GpuDemands, driver: NvidiaDriver, gpus: Sequence[Gpu]) -> Finding:
    """Return whether the libcuda that was loaded inside serves the locked CUDA: the same major is enough."""
    needed, found = demands.cuda, driver.libcuda
    is_forward = bool(found and driver.cuda and is_older(driver.cuda, found))
    is_met = bool(found) and (needed is None or found is None or major(found) >= major(needed))
    on_geforce = is_forward and any(gpu.is_geforce for gpu in gpus)
    told = f"CUDA {found}" if found else "none was loaded"
    if is_forward:
        told += f" on a driver of CUDA {driver.cuda}: forward compatibility"
        told += ", which does not support GeForce" if on_geforce else ""
    return make_finding(
        "libcuda inside",
        found=told,
        needed=f"CUDA {needed.partition('.')[0]}" if needed else "any",
        level=Level.OK if is_met and not on_geforce else Level.ERROR,
        source="cuDriverGetVersion in a container",
        fix="take the compat folder out of LD_LIBRARY_PATH or of the base image"
        if on_geforce
        else "let the container have the driver capabilities compute,utility (NVIDIA_DRIVER_CAPABILITIES)",
    )


def _gpus_inside(demands: GpuDemands, gpus: Sequence[Gpu], outside: Sequence[Gpu]) -> Finding:
    known = {gpu.uuid for gpu in outside}
    strangers = [gpu.uuid for gpu in gpus if gpu.uuid not in known]
    return make_finding(
        "GPUs inside",
        found=f"{len(gpus)}" + (f", not of this machine: {', '.join(strangers)}" if strangers else ""),
        needed=f"{demands.count} of the machine's",
        level=Level.OK if len(gpus) == demands.count and not strangers else Level.ERROR,
        source="NVML in a container",
        fix="let no default runtime of the engine add GPUs to those that are asked for",
    )
