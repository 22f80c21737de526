"""What an image demands, held against its locks, a machine, and what a container sees: a Finding per rule."""

from collections.abc import Mapping, Sequence

from repro_image.core.compatibility import Tables
from repro_image.core.constraints_cuda import cuda_findings
from repro_image.core.constraints_host import inside_findings as _inside
from repro_image.core.constraints_host import nvidia_findings
from repro_image.core.constraints_image import environment_findings
from repro_image.core.constraints_machine import machine_findings
from repro_image.core.constraints_size import packed_findings
from repro_image.core.constraints_wheels import wheel_findings
from repro_image.core.demands import Demands, demands_of
from repro_image.core.finding import Finding, Level, strictly
from repro_image.core.fingerprint import Host
from repro_image.core.gpu import Gpu, NvidiaDriver
from repro_image.core.lockfile import Locks
from repro_image.core.project import ImageSpec


def check_constraints(
    image: ImageSpec, locks: Locks | None, host: Host, *, tables: Tables, strict: bool = False
) -> tuple[Finding, ...]:
    """Return a finding for each rule: known-bad is an error, unknown a warning, or an error when ``strict``.

    locks: None before the first lock; then only the machine is checked.
    """
    demands = demands_of(image, locks, tables)
    findings = (*host_findings(demands, host, tables), *lock_findings(image, locks, tables))
    return strictly(findings) if strict else findings


def lock_findings(image: ImageSpec, locks: Locks | None, tables: Tables) -> tuple[Finding, ...]:
    """Return the findings that need no machine: they hold wherever the image is built."""
    if locks is None:
        return (_not_locked(),)
    findings = (*wheel_findings(image, locks, tables), *packed_findings(image, locks))
    gpu = demands_of(image, locks, tables).gpu
    if gpu is None:
        return findings
    return (*findings, *cuda_findings(image, gpu, locks.requirements.wheels, tables))


def host_findings(demands: Demands, host: Host, tables: Tables) -> tuple[Finding, ...]:
    """Return the findings on a machine, this one or a recorded one."""
    return (*machine_findings(demands, host), *nvidia_findings(demands, host, tables))


def inside_findings(
    demands: Demands, host: Host, driver: NvidiaDriver | None, gpus: Sequence[Gpu], tables: Tables
) -> tuple[Finding, ...]:
    """Return the findings on what a probe in a container of the image saw; none for an image without GPUs."""
    return tuple(_inside(demands, host, driver, gpus, tables))


def foreign_findings(
    demands: Demands, environment: Mapping[str, str], host: Host, tables: Tables, *, strict: bool = False
) -> tuple[Finding, ...]:
    """Return the findings on an image whose project is not at hand. environment: the image's own."""
    findings = (*environment_findings(environment), *host_findings(demands, host, tables))
    if demands.platform is None:
        findings = (*findings, _not_labelled())
    return strictly(findings) if strict else findings


def _not_labelled() -> Finding:
    return Finding(
        rule="labels",
        found="none that says what the image demands of a machine",
        needed="such labels",
        level=Level.WARNING,
        source="the image's labels",
        fix="check the image in its project, or build it again there: newer images carry these labels",
    )


def _not_locked() -> Finding:
    return Finding(
        rule="locks",
        found="none",
        needed="locks",
        level=Level.WARNING,
        source="locks",
        fix="run `repro-image lock`; until then only the machine can be checked",
    )
