"""What a golden run gets of this machine, checked against the demands outside and inside a container."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from repro_image.adapters.engine import Engine
from repro_image.adapters.gpu_container import probe_inside
from repro_image.adapters.host import read_host, whole_cores
from repro_image.adapters.nvml import visible_devices
from repro_image.adapters.shipped import compatibility_tables
from repro_image.core.constraints import host_findings, inside_findings
from repro_image.core.constraints_gpu import usable_gpus
from repro_image.core.constraints_image import environment_findings
from repro_image.core.demands import Demands
from repro_image.core.finding import Finding, errors_of
from repro_image.core.fingerprint import Host
from repro_image.core.gpu import Gpu, choose_gpus
from repro_image.core.project import GpuSpec
from repro_image.errors import BrokenConstraintsError, TooFewCoresError


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What a run gets. cpuset: whole cores, such as ``0,1``; gpus: empty for an image that needs none."""

    host: Host
    cpuset: str
    gpus: tuple[Gpu, ...]


def known_host(engine: Engine) -> Host:
    """Return this machine with the versions of its engine, which are noted and decide nothing."""
    versions = engine.versions
    return msgspec.structs.replace(read_host(), engine=versions.engine, buildx=versions.buildx)


def require_hardware(name: str, demands: Demands, host: Host, *, threads: int) -> Hardware:
    """Return what a golden run of the image ``name`` gets of this machine.

    Raises: BrokenConstraintsError with every rule that the machine breaks; TooFewCoresError; NoGpuError;
        GpuBusyError.
    """
    require(name, errors_of(host_findings(demands, host, compatibility_tables())))
    cpuset = whole_cores(threads)
    if cpuset is None:
        raise TooFewCoresError(threads)
    return Hardware(host=host, cpuset=cpuset, gpus=idle_gpus(demands, host))


def idle_gpus(demands: Demands, host: Host, *, models: Iterable[str] = ()) -> tuple[Gpu, ...]:
    """Return the GPUs that the image runs on: idle, of one kind, and that no rule forbids.

    models: of these, where there are any; else of those that the image demands.
    Raises: NoGpuError; GpuBusyError.
    """
    if demands.gpu is None or host.nvidia is None:
        return ()
    usable = usable_gpus(demands.gpu, host.gpus, host.nvidia, compatibility_tables())
    known = {gpu.name for gpu in usable}
    spec = GpuSpec(
        models=tuple(name for name in models if name in known) or demands.gpu.models,
        count=demands.gpu.count,
        memory_gib=demands.gpu.memory_gib,
    )
    return choose_gpus(usable, spec, visible=visible_devices())


def look_inside(
    engine: Engine,
    image: str,
    gpus: Sequence[Gpu],
    demands: Demands,
    host: Host,
    *,
    environment: Mapping[str, str],
) -> tuple[tuple[Gpu, ...], tuple[Finding, ...]]:
    """Return ``gpus`` as a container of ``image`` sees them, and every rule that is broken there.

    The image's own variables are looked at first: with the wrong ones no container of it may be started.
    """
    info = engine.image(image)
    own = dict(line.partition("=")[::2] for line in info.environment) if info else {}
    broken = errors_of(environment_findings(own))
    if broken:
        return (), broken
    driver, seen = probe_inside(engine, image, gpus=[gpu.uuid for gpu in gpus], environment=environment)
    return seen, errors_of(inside_findings(demands, host, driver, seen, compatibility_tables()))


def require(name: str, broken: Sequence[Finding]) -> None:
    """Raise BrokenConstraintsError when any rule is broken."""
    if broken:
        raise BrokenConstraintsError(
            name, tuple(f"{f.rule}: found {f.found}, needed {f.needed}" for f in broken)
        )
