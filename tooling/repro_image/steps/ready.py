"""Whether this machine can be asked for an epoch's answers, with what of it, and in which numeric class."""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from repro_image.adapters.engine import Engine
from repro_image.adapters.host import whole_cores
from repro_image.adapters.shipped import compatibility_tables
from repro_image.core.comparison import Comparison, FieldDifference, not_comparable_constraint
from repro_image.core.constraints import host_findings
from repro_image.core.demands import Demands
from repro_image.core.finding import Finding, errors_of
from repro_image.core.fingerprint import CpuClass, CudaClass, Host, NumericClass, cpu_class, cuda_class
from repro_image.core.gpu import Gpu
from repro_image.core.image_labels import parse_demands
from repro_image.core.ledger import StoredEpoch
from repro_image.core.project import tensor_parallel_of
from repro_image.core.whatif import WhatIf, changed_engine
from repro_image.errors import GpuBusyError, InvalidLabelsError, NoGpuError
from repro_image.steps.hardware import idle_gpus, known_host, look_inside


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """What this machine gives the run.

    cpuset: whole cores, such as ``0,1``; empty where there are too few.
    gpus:   as the image sees them; empty for a class of the CPU.
    wanted: the class that the run will have.
    """

    host: Host
    threads: int
    cpuset: str
    gpus: tuple[Gpu, ...]
    wanted: NumericClass


def ready_for(
    stored: StoredEpoch, image: str, *, what_if: WhatIf, engine: Engine, threads: int
) -> Ready | Comparison:
    """Return what a run of the epoch's ``image`` gets, or the verdict that this machine cannot run it."""
    host = known_host(engine)
    first = stored.epoch.first_class.fingerprint
    info = engine.image(image)
    # What the image demands stands in its own labels: the project may have moved on since.
    try:
        demands = parse_demands(info.labels if info else {}, reference=stored.epoch.tag)
    except InvalidLabelsError:
        if isinstance(first.numeric_class, CudaClass):
            raise
        demands = Demands(
            is_foreign=True
        )  # a template may leave the labels out, and a processor takes orders
    if isinstance(first.numeric_class, CpuClass):  # its threads are of the class, and may be a what-if
        demands = replace(demands, threads=None)
    broken = errors_of(host_findings(demands, host, compatibility_tables()))
    if broken:
        return _verdict(broken)
    gpus: tuple[Gpu, ...] = ()
    if isinstance(first.numeric_class, CpuClass):
        wanted: NumericClass = cpu_class(host, threads=threads)
    else:
        found = _gpus(stored, image, demands, host, what_if, engine)
        if isinstance(found, Comparison):
            return found
        gpus = found
        settings = changed_engine(first.subject.engine, what_if)
        wanted = cuda_class(gpus, tensor_parallel=tensor_parallel_of(settings))
    return Ready(host=host, threads=threads, cpuset=whole_cores(threads) or "", gpus=gpus, wanted=wanted)


def _gpus(
    stored: StoredEpoch, image: str, demands: Demands, host: Host, what_if: WhatIf, engine: Engine
) -> tuple[Gpu, ...] | Comparison:
    """Return the GPUs as the image sees them, of a class that the epoch knows where there are any."""
    classes = [entry.fingerprint.numeric_class for entry in stored.goldens]
    models = [known.gpu for known in classes if isinstance(known, CudaClass)]
    try:
        gpus = idle_gpus(demands, host, models=models)
    except (NoGpuError, GpuBusyError) as error:
        found = FieldDifference(field="GPU", expected="an idle one that fits", found=error.what)
        return not_comparable_constraint((found,))
    seen, broken = look_inside(engine, image, gpus, demands, host, environment=what_if.environment)
    return _verdict(broken) if broken else seen


def _verdict(broken: Sequence[Finding]) -> Comparison:
    return not_comparable_constraint(
        tuple(FieldDifference(field=f.rule, expected=f.needed, found=f.found) for f in broken)
    )
