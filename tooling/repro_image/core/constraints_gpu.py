"""Rules on the GPUs of a machine or a container, one by one and as a set."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from repro_image.core.compatibility import Tables, architecture_order, is_code_for, is_older, is_ptx_for
from repro_image.core.demands import GpuDemands, is_served
from repro_image.core.finding import Finding, Level, level_of, make_finding
from repro_image.core.gpu import Gpu, NvidiaDriver

_GPUS = "gpus.toml"


class _Rule(NamedTuple):
    """A rule that a single GPU meets or not.

    is_met: None where that is unknown.
    shown:  what is found.
    others: level where enough GPUs meet it and others do not.
    """

    name: str
    needed: str
    is_met: Callable[[Gpu], bool | None]
    shown: Callable[[Gpu], str]
    source: str
    fix: str
    others: Level = Level.OK


def gpu_findings(
    demands: GpuDemands, gpus: Sequence[Gpu], driver: NvidiaDriver, tables: Tables
) -> Iterator[Finding]:
    """Yield a finding for each rule on ``gpus``: enough of them have to meet it, and all at once.

    driver: whose CUDA compiles PTX; with a libcuda of its own that one's.
    """
    for rule in _rules(demands, driver, tables):
        yield _applied(rule, gpus, demands.count)
    usable = usable_gpus(demands, gpus, driver, tables)
    yield _count(demands, usable, gpus)
    yield _known(usable, tables)


def usable_gpus(
    demands: GpuDemands, gpus: Sequence[Gpu], driver: NvidiaDriver, tables: Tables
) -> tuple[Gpu, ...]:
    """Return those of ``gpus`` that no rule forbids."""
    rules = tuple(_rules(demands, driver, tables))
    return tuple(gpu for gpu in gpus if all(rule.is_met(gpu) is not False for rule in rules))


def _rules(demands: GpuDemands, driver: NvidiaDriver, tables: Tables) -> Iterator[_Rule]:
    yield _Rule(
        name="GPU health",
        needed="a GPU that its driver can read",
        is_met=lambda gpu: not gpu.fault,
        shown=lambda gpu: gpu.fault or "healthy",
        source="NVML",
        fix="look for Xid errors in `dmesg`, then reset the GPU or restart the machine",
        others=Level.WARNING,
    )
    yield _Rule(
        name="MIG",
        needed="off",
        is_met=lambda gpu: not gpu.mig,
        shown=lambda gpu: "on" if gpu.mig else "off",
        source="NVML",
        fix="turn it off with `nvidia-smi -i INDEX -mig 0`: slices of a GPU are no numeric class",
    )
    if demands.models:
        yield _Rule(
            name="gpu.models",
            needed=" or ".join(demands.models),
            is_met=lambda gpu: gpu.name in demands.models,
            shown=lambda gpu: gpu.name or "no name",
            source="image.toml",
            fix="use a machine with such a GPU, or add this one's name to gpu.models (a new numeric class)",
        )
    if demands.memory_gib is not None:
        yield _memory(demands.memory_gib)
    yield _capability(demands)
    if demands.ptx:
        yield _ptx(demands, driver, tables)


def _memory(needed: int) -> _Rule:
    return _Rule(
        name="gpu.memory_gib",
        needed=f"sold with {needed} GB",
        is_met=lambda gpu: gpu.is_sold_with(needed) if gpu.memory_bytes else None,
        shown=lambda gpu: f"{gpu.memory_bytes / 2**30:.1f} GiB" if gpu.memory_bytes else "unknown",
        source="image.toml",
        fix="use a GPU with more memory, or lower gpu.memory_gib if the image runs with less",
    )


def _capability(demands: GpuDemands) -> _Rule:
    floor = f"{demands.capability} or newer; " if demands.capability else ""
    return _Rule(
        name="compute capability",
        needed=f"{floor}the wheels have machine code for {' '.join(demands.code) or 'unknown ones'}",
        is_met=lambda gpu: is_served(demands, gpu.compute_capability) if gpu.compute_capability else None,
        shown=lambda gpu: gpu.compute_capability or "unknown",
        source="settings.toml, wheels.toml",
        fix="use a GPU that fits, or lock releases and set an engine that work with this one",
    )


def _ptx(demands: GpuDemands, driver: NvidiaDriver, tables: Tables) -> _Rule:
    """PTX is for a compiler in the driver, which must be at least as new as the one that wrote it.

    Source: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, limitations.
    """
    speaks = driver.libcuda or driver.cuda

    def is_met(gpu: Gpu) -> bool | None:
        if gpu.compute_capability is None:
            return None
        needed = ptx_cuda(demands, gpu.compute_capability)
        if needed is None:
            return True
        older = is_older(speaks, needed)
        return None if older is None else not older

    newest = max((kernels.cuda for kernels in demands.ptx), key=architecture_order)
    row = tables.toolkit_row(newest)
    came_with = f" (driver {row.driver} or newer)" if row and row.driver else ""
    return _Rule(
        name="kernels that the driver compiles",
        needed=f"machine code, or a driver that speaks CUDA {newest}{came_with}",
        is_met=is_met,
        shown=lambda gpu: (
            "none"
            if gpu.compute_capability and ptx_cuda(demands, gpu.compute_capability) is None
            else f"some, by a driver that speaks {f'CUDA {speaks}' if speaks else 'an unknown CUDA'}"
        ),
        source=row.source if row else "wheels.toml",
        fix="install a newer driver; minor-version compatibility does not cover PTX",
    )


def ptx_cuda(demands: GpuDemands, capability: str) -> str | None:
    """Return the newest CUDA whose PTX is compiled for a GPU of ``capability``; None: there is none."""
    compiled = [
        kernels.cuda
        for kernels in demands.ptx
        if is_ptx_for(kernels.ptx, capability)
        and not any(is_code_for(code, capability) for code in kernels.code)
    ]
    return max(compiled, key=architecture_order, default=None)


def _applied(rule: _Rule, gpus: Sequence[Gpu], count: int) -> Finding:
    met = [rule.is_met(gpu) for gpu in gpus]
    level = level_of(
        is_known=met.count(True) >= count or len(met) - met.count(False) < count,
        is_met=met.count(True) >= count,
    )
    return make_finding(
        rule.name,
        found=_by_gpu([(gpu, rule.shown(gpu)) for gpu in gpus]),
        needed=rule.needed,
        level=rule.others if level is Level.OK and False in met else level,
        source=rule.source,
        fix=rule.fix,
    )


def _by_gpu(shown: Sequence[tuple[Gpu, str]]) -> str:
    """Return what the GPUs show, with their numbers where they differ."""
    texts = dict.fromkeys(text for _, text in shown)
    if len(texts) <= 1:
        return next(iter(texts), "no GPU")
    numbers = {text: ", ".join(str(gpu.index) for gpu, own in shown if own == text) for text in texts}
    return "; ".join(f"{text} (GPU {numbers[text]})" for text in texts)


def _count(demands: GpuDemands, usable: Sequence[Gpu], gpus: Sequence[Gpu]) -> Finding:
    """Return whether enough GPUs of one kind meet all rules. Chance must not pick between two kinds."""
    kinds: dict[tuple[str, str | None, int], list[Gpu]] = {}
    for gpu in usable:
        kinds.setdefault((gpu.name, gpu.compute_capability, gpu.memory_gib), []).append(gpu)
    enough = [kind for kind in kinds.values() if len(kind) >= demands.count]
    told = ", ".join(f"{len(kind)} {name}" for (name, _, _), kind in kinds.items())
    level = Level.ERROR if not enough else Level.WARNING if len(enough) > 1 else Level.OK
    fix = (
        "name one model in gpu.models: a golden belongs to one kind of GPU, and the first that fits is taken"
    )
    if not enough:
        fix = "use a machine with more GPUs that meet the rules above, all of one kind"
    return make_finding(
        "gpu.count",
        found=(told or "none") + (f", of {len(gpus)} in all" if len(usable) < len(gpus) else ""),
        needed=f"{demands.count} of one kind",
        level=level,
        source="image.toml",
        fix=fix,
    )


def _known(usable: Sequence[Gpu], tables: Tables) -> Finding:
    """Return whether the models are known; the table knows what a model's capability must be."""
    rows = {gpu.name: tables.gpu_row(gpu.name) for gpu in usable}
    unknown = [name for name, row in rows.items() if row is None]
    wrong = [
        f"{gpu.name} says {gpu.compute_capability}, is {row.compute_capability}"
        for gpu in usable
        if (row := rows[gpu.name]) and gpu.compute_capability not in (None, row.compute_capability)
    ]
    kinds = [f"{name} ({row.kind})" for name, row in rows.items() if row]
    return make_finding(
        "GPU model",
        found=", ".join(wrong or [*kinds, *(f"{name or 'no name'} (unknown)" for name in unknown)]) or "none",
        needed="a model of the table",
        level=level_of(is_known=bool(wrong) or not unknown, is_met=not wrong),
        source=_GPUS,
        fix="add a row for it to gpus.toml, with its source",
    )
