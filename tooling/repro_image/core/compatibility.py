"""What is known to run on what: the rows of data/*.toml, and what follows from them."""

import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
from packaging.version import Version

from repro_image.core.gpu import MajorMinor
from repro_image.core.lockfile import LockedWheel
from repro_image.core.project import EnvName, Line, ProjectName, VersionText
from repro_image.core.reference import Digest
from repro_image.errors import InvalidFileError

# An architecture as nvcc names it, but for the point: ``9.0``; ``9.0a`` and ``10.0f`` have special features.
Architecture: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,3}\.[0-9][af]?\Z")]
DriverText: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{3,4}(?:\.[0-9]{1,3}){0,2}\Z")]
GpuKind: TypeAlias = Literal["datacenter", "professional", "geforce"]


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """source: where the row was read, on the day ``read``."""

    source: Line
    read: date


class ToolkitRow(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One CUDA release.

    floor:  oldest driver that runs machine code of any release of this major (minor-version compatibility).
    driver: the one that came with the release: the oldest that compiles its PTX; None where it is not known.
    """

    cuda: MajorMinor
    floor: DriverText
    driver: DriverText | None = None


class ForwardRow(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Driver branches below the floor from which NVIDIA's forward compatibility leads to CUDA ``major``."""

    major: Annotated[int, msgspec.Meta(gt=0)]
    branches: tuple[int, ...]


class GpuRow(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU model. name: as NVML prints it; memory_gb: as it is sold."""

    name: Line
    compute_capability: MajorMinor
    kind: GpuKind
    memory_gb: int


class PtxKernels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Kernels that come as PTX, too: a driver compiles them for a GPU that ``code`` does not fit.

    code: architectures that they have machine code for.
    ptx:  of the PTX.
    cuda: toolkit that wrote the PTX; an older driver cannot read it.
    """

    code: tuple[Architecture, ...]
    ptx: MajorMinor
    cuda: MajorMinor


class WheelRow(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the kernels of one wheel were compiled for.

    sha256: of the exact file.
    cuda:   toolkit that compiled it.
    code:   architectures that its general kernels have machine code for.
    ptx:    its kernels that come as PTX; None where nobody has looked.
    """

    name: ProjectName
    version: VersionText
    sha256: Digest
    cuda: MajorMinor
    code: tuple[Architecture, ...]
    ptx: tuple[PtxKernels, ...] | None = None


class AdvisoryRow(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A known vulnerability of ``subject`` from version ``since`` on until ``fixed``."""

    id: Line
    subject: ProjectName
    fixed: VersionText
    since: VersionText = "0"


class CompilerRow(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A package that makes kernels at run time.

    cache:   variable that names the folder where it keeps them.
    settled: setting, such as ``NAME=0``, with which vLLM leaves it alone; None: it never asks a network.
    """

    name: ProjectName
    does: Line
    cache: EnvName
    settled: Line | None = None


class SettingRow(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A setting of vLLM, ``NAME=VALUE``, that needs at least ``capability``."""

    setting: Line
    capability: MajorMinor


class Tables(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All rows."""

    toolkit: tuple[ToolkitRow, ...]
    forward: tuple[ForwardRow, ...]
    gpu: tuple[GpuRow, ...]
    wheel: tuple[WheelRow, ...]
    advisory: tuple[AdvisoryRow, ...]
    compiler: tuple[CompilerRow, ...]
    setting: tuple[SettingRow, ...]

    def toolkit_row(self, cuda: str) -> ToolkitRow | None:
        return next((row for row in self.toolkit if row.cuda == cuda), None)

    def gpu_row(self, name: str) -> GpuRow | None:
        return next((row for row in self.gpu if row.name == name), None)

    def forward_branches(self, cuda: str) -> tuple[int, ...]:
        return next((row.branches for row in self.forward if row.major == major(cuda)), ())

    def wheel_row(self, wheel: LockedWheel) -> WheelRow | None:
        """Return the row of exactly this file, else one of the same release for another Python.

        A local build such as ``2.13.0+cpu`` has nothing in common with the release that it is named after.
        """
        same = [row for row in self.wheel if row.name == wheel.name]
        exact = [row for row in same if row.sha256 == wheel.sha256]
        release = sorted(
            (row for row in same if row.version == wheel.version), key=lambda row: row.ptx is None
        )
        return next(iter((*exact, *release)), None)


T = TypeVar("T")


def parse_tables(texts: Mapping[str, str]) -> Tables:
    """Return the tables that ``texts`` hold. texts: file name -> TOML. Raises: InvalidFileError."""
    parts: dict[str, object] = {}
    for path, text in sorted(texts.items()):
        try:
            table = msgspec.toml.decode(text)
            parts |= table
        except msgspec.DecodeError as error:
            raise InvalidFileError(f"not TOML: {error}", path=path) from error
    try:
        return msgspec.convert(parts, Tables)
    except msgspec.ValidationError as error:
        raise InvalidFileError(str(error), path=", ".join(sorted(texts))) from error


def major(cuda: str) -> int:
    return int(cuda.partition(".")[0])


def is_code_for(architecture: str, capability: str) -> bool:
    """Return whether machine code for ``architecture`` runs on a GPU of ``capability``.

    Plain code and family code (``f``) run on the same major with the same or a newer minor, architecture code
    (``a``) on exactly its own.
    Source: NVIDIA, CUDA C++ Programming Guide, binary compatibility and feature-set compiler targets,
        https://docs.nvidia.com/cuda/cuda-c-programming-guide/#feature-set-compiler-targets
    """
    target, device = architecture_order(architecture)[:2], architecture_order(capability)[:2]
    if architecture.endswith("a"):
        return target == device
    return target[0] == device[0] and target[1] <= device[1]


def is_ptx_for(ptx: str, capability: str) -> bool:
    """Return whether a driver can compile PTX of ``ptx`` for a GPU of ``capability``: any newer one."""
    return architecture_order(ptx) <= architecture_order(capability)


def version_of(text: str | None) -> Version | None:
    """Return the version that ``text`` starts with, such as 1.17.8 of ``1.17.8-1``, or None."""
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", text or "")
    return Version(match[0]) if match else None


def is_older(found: str | None, needed: str) -> bool | None:
    """Return whether version ``found`` is older than ``needed``; None where either is no version."""
    versions = version_of(found), version_of(needed)
    return None if versions[0] is None or versions[1] is None else versions[0] < versions[1]


def architecture_order(architecture: str) -> tuple[int, int, str]:
    """Return the key by which architectures, capabilities and CUDA releases sort."""
    match = re.fullmatch(r"([0-9]+)\.([0-9]+)([af]?)", architecture)
    assert match is not None, architecture  # noqa: S101 - the types' own grammar
    return int(match[1]), int(match[2]), match[3]


def ptx_order(kernels: PtxKernels) -> tuple[object, ...]:
    """Return the key by which kernels with PTX sort."""
    return architecture_order(kernels.ptx), [architecture_order(code) for code in kernels.code], kernels.cuda
