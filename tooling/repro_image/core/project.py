"""image.toml and ``[tool.repro-image]``: text -> ImageSpec and Settings; errors name the key path."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from repro_image.core.reference import is_repository, is_tagged_image
from repro_image.errors import InvalidFileError

# One word, safe in a path, a Dockerfile stage name and a repository name.
_NAME = r"\A[a-z0-9]+(?:-[a-z0-9]+)*\Z"
Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=_NAME, max_length=64)]
SuiteName: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"\A(?:[a-z0-9]+(?:-[a-z0-9]+)*|suite\.toml)\Z", max_length=64)
]
# A line of text that people read: no control characters, so no line of it can become an instruction.
Line: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f\u2028\u2029]+\Z", max_length=500)
]
DebianName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9+.-]+\Z", max_length=100)]
ProjectName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9]+(?:-[a-z0-9]+)*\Z", max_length=100)]
VersionText: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9][A-Za-z0-9.+!_-]*\Z", max_length=64)]
PythonVersion: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A3\.[0-9]{1,2}\Z")]
EnvName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[A-Z][A-Z0-9_]*\Z", max_length=100)]
EnvValue: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.,:/=+@%-]*\Z", max_length=500)]
_RELATIVE_PATH = r"\A[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*\Z"
RelativePath: TypeAlias = Annotated[str, msgspec.Meta(pattern=_RELATIVE_PATH)]
# As model hubs name repositories: at most one slash, and no part that a path could take for something else.
ModelRepository: TypeAlias = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A(?!.*(?:--|\.\.|\.git\Z))[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
        r"(?:/[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?)?\Z",
        max_length=96,
    ),
]
Commit: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{40}\Z")]
Positive: TypeAlias = Annotated[int, msgspec.Meta(gt=0)]
Address: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\Ahttps?://[^\s@]+\Z", max_length=500)]
EngineValue: TypeAlias = bool | int | float | str
FlagName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9_]+\Z", max_length=64)]
# As NVML prints it, such as ``NVIDIA A100-SXM4-80GB``.
GpuName: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9()/+.-]*(?: [A-Za-z0-9()/+.-]+)*\Z", max_length=96)
]
# PEP 440 specifiers, such as ``>=580.65.06,<600``.
DriverRange: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"\A(?:[<>]=?|[!=~]=)[0-9.]+(?:,(?:[<>]=?|[!=~]=)[0-9.]+)*\Z", max_length=100)
]

# Names that end like a credential: their values would end up in a layer, a label or a log.
SECRET_NAME = re.compile(r".*_(?:TOKEN|SECRET|KEY|PASSWORD|CREDENTIALS?)")

# Variables that every run sets itself, and why: another value would be told and not used.
OWN_VARIABLES = {
    "HOME": "the home of a run is its own empty folder",
    "OMP_NUM_THREADS": "the number of threads decides it",
}


class DebianBase(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="debian"
):
    """A root file system made from locked Debian packages.

    suite:    release code name, such as ``bookworm``.
    packages: package name -> why the image needs it; their dependencies come along.
    """

    suite: Annotated[str, msgspec.Meta(pattern=r"\A[a-z]+\Z")]
    packages: dict[DebianName, Line]


class RegistryBase(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="registry"
):
    """An image of a registry, Debian or Ubuntu, with locked packages of its own release on top.

    reference: registry, repository and tag, such as ``docker.io/nvidia/cuda:13.0.3-base-ubuntu24.04``.
    packages:  package name -> why the image needs it; what the base lacks of their dependencies comes along.
    """

    reference: Line
    packages: dict[DebianName, Line] = msgspec.field(default_factory=dict)


Base: TypeAlias = DebianBase | RegistryBase


class PythonSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How ``requirements/<image>.in`` is resolved.

    version:  the interpreter of the base, checked when locking.
    excluded: project name -> why it is left out although something asks for it.
    sources:  project name -> name of the index in ``[tool.repro-image.indexes]`` that it must come from.
    """

    version: PythonVersion
    excluded: dict[ProjectName, Line] = msgspec.field(default_factory=dict)
    sources: dict[ProjectName, Name] = msgspec.field(default_factory=dict)


class GgufModel(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="gguf"
):
    """A model that a Python package ships as a GGUF file; converted to safetensors without torch."""

    name: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.-]*\Z", max_length=100)]
    license: Line
    package: ProjectName
    version: VersionText
    member: RelativePath


class HubModel(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="hub"
):
    """A model of a hub, as safetensors.

    repository: such as ``HuggingFaceTB/SmolLM2-1.7B-Instruct``.
    revision:   a branch, tag or commit; the lock names the commit.
    files:      patterns of the files to take, ``*`` within one folder; empty: what vLLM needs.
    """

    repository: ModelRepository
    revision: Annotated[
        str, msgspec.Meta(pattern=r"\A(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./-]*\Z", max_length=200)
    ]
    license: Line
    files: tuple[Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_*?][A-Za-z0-9_./*?-]*\Z")], ...] = ()

    @property
    def is_pinned(self) -> bool:
        """Tell whether the revision is a commit, which never moves."""
        return is_commit(self.revision)


class GoldenSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The golden run.

    suite:       name of a suite that repro-image ships, or ``suite.toml`` for the image's own.
    seed:        root seed of every random choice.
    threads:     whole cores that the run gets; part of the numeric class.
    timeout_s:   seconds after which a run is ended.
    memory_gib:  memory limit of the run's container.
    engine:      arguments of ``vllm.LLM``, all explicit.
    environment: variables of the run, set in the image.
    """

    suite: SuiteName
    threads: Positive
    timeout_s: Positive
    memory_gib: Positive
    engine: dict[Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9_]*\Z")], EngineValue]
    environment: dict[EnvName, EnvValue] = msgspec.field(default_factory=dict)
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 42


class ConstraintsSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the user demands of a machine that runs the image, and of the image's size.

    image_mib: of all layers, unpacked.
    """

    cpu_flags: tuple[FlagName, ...] = ()
    memory_gib: Positive | None = None
    image_mib: Positive | None = None


def wrong_counts(engine: Mapping[str, EngineValue]) -> tuple[str, ...]:
    """Return the arguments of ``vllm.LLM`` that are counted with here and are no whole numbers above 0."""
    return tuple(
        name
        for name in ("tensor_parallel_size", "max_model_len", "max_num_seqs")
        if name in engine and (type(engine[name]) is not int or int(engine[name]) < 1)
    )


def tensor_parallel_of(engine: Mapping[str, EngineValue]) -> int:
    """Return over how many devices these arguments of ``vllm.LLM`` split each layer."""
    return int(engine.get("tensor_parallel_size", 1))


class GpuSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the image demands of a machine's GPUs; the table's presence makes it an image for GPUs.

    models:     names as the driver prints them, of which the GPU must have one; empty: any.
    count:      GPUs that the golden run gets, all of one model.
    memory_gib: of each GPU, as it is sold.
    driver:     versions that are accepted; None: whatever the locked wheels accept.
    """

    models: tuple[GpuName, ...] = ()
    count: Positive = 1
    memory_gib: Positive | None = None
    driver: DriverRange | None = None


class ImageSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """images/<image>/image.toml."""

    format: Literal[1]
    description: Line
    platform: Literal["linux/amd64"]
    base: Base
    python: PythonSpec
    model: GgufModel | HubModel
    golden: GoldenSpec
    constraints: ConstraintsSpec = msgspec.field(default_factory=ConstraintsSpec)
    gpu: GpuSpec | None = None

    @property
    def tensor_parallel(self) -> int:
        """Return over how many GPUs, or CPU sockets, vLLM splits each layer."""
        return tensor_parallel_of(self.golden.engine)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[tool.repro-image]`` in pyproject.toml.

    repository:      prefix of image repositories: ``<repository>/<image>:<tag>``.
    store:           folder of the content-addressed store; None: below the user's cache folder.
    ca:              file with the certificates to trust, instead of the machine's.
    debian_mirror:   used instead of the machine's own apt sources.
    ubuntu_mirror:   the same for Ubuntu, and instead of Ubuntu's own archive.
    debian_snapshot: asked for a .deb that the mirror no longer has.
    indexes:         index name -> address, for the packages that image.toml maps to it.
    """

    repository: str = "repro-image"
    store: str | None = None
    ca: str | None = None
    debian_mirror: Address | None = None
    ubuntu_mirror: Address | None = None
    debian_snapshot: Address | None = None
    indexes: dict[Name, Address] = msgspec.field(default_factory=dict)


T = TypeVar("T")


def parse_image(text: str, *, path: str) -> ImageSpec:
    """Return the ImageSpec that ``text`` describes; ``path`` is named in errors.

    Raises: InvalidFileError with the key path, such as ``$.base.suite``.
    """
    if not text.strip():
        raise InvalidFileError(
            "the file is empty", path=path, fix="start from `repro-image init`'s image.toml"
        )
    spec = _decode(text, ImageSpec, path=path)
    if isinstance(spec.base, RegistryBase) and not is_tagged_image(spec.base.reference):
        raise InvalidFileError(
            f"`$.base.reference` is not `registry/repository:tag`: {spec.base.reference!r}",
            path=path,
            fix="write for example docker.io/library/debian:bookworm-slim; the lock adds the digests",
        )
    for name in spec.golden.environment:
        if name in OWN_VARIABLES:
            raise InvalidFileError(
                f"$.golden.environment.{name} would not count: {OWN_VARIABLES[name]}",
                path=path,
                fix="remove it",
            )
        if SECRET_NAME.fullmatch(name):
            raise InvalidFileError(
                f"$.golden.environment.{name} is named like a credential, and image variables are public",
                path=path,
                fix="remove it; a golden run has no network and needs no credential",
            )
    _require_layout(spec, path=path)
    return spec


def _require_layout(spec: ImageSpec, *, path: str) -> None:
    """Refuse what is no count, a split over more GPUs than the run gets, and a range of drivers that is
    none.
    """
    wrong = next(iter(wrong_counts(spec.golden.engine)), None)
    if wrong:
        raise InvalidFileError(
            f"`$.golden.engine.{wrong}` must be a whole number of at least 1, "
            f"found {spec.golden.engine[wrong]!r}",
            path=path,
        )
    split = spec.tensor_parallel
    if spec.gpu is None:
        return
    if split > spec.gpu.count:
        raise InvalidFileError(
            f"`$.golden.engine.tensor_parallel_size` is {split}, and `$.gpu.count` only {spec.gpu.count}",
            path=path,
            fix=f"set `count = {split}` in [gpu], or lower tensor_parallel_size",
        )
    try:
        SpecifierSet(spec.gpu.driver or "")
    except InvalidSpecifier as error:
        raise InvalidFileError(
            f"`$.gpu.driver`: {error}", path=path, fix="write a range such as >=580.65.06,<600"
        ) from error


def is_commit(text: str) -> bool:
    """Return whether ``text`` is the full identifier of a git commit."""
    return re.fullmatch(r"[0-9a-f]{40}", text) is not None


def is_relative_path(text: str) -> bool:
    """Return whether ``text`` may name a file in a lock."""
    return re.search(_RELATIVE_PATH, text) is not None


def is_name(text: str) -> bool:
    """Return whether ``text`` may name an image."""
    return len(text) <= 64 and re.search(_NAME, text) is not None


def parse_settings(text: str, *, path: str) -> Settings | None:
    """Return ``[tool.repro-image]`` of a pyproject.toml, or None where that table is missing."""
    tools = _decode(text, dict[str, Any], path=path).get("tool")
    table = tools.get("repro-image") if isinstance(tools, dict) else None
    if table is None:
        return None
    try:
        settings = msgspec.convert(table, Settings)
    except msgspec.ValidationError as error:
        raise InvalidFileError(f"[tool.repro-image]: {error}", path=path) from error
    if not is_repository(settings.repository):
        raise InvalidFileError(
            f"[tool.repro-image]: `$.repository` is not a repository name: {settings.repository!r}",
            path=path,
            fix="use lower case letters, digits and separators, such as ghcr.io/team/images",
        )
    return settings


def _decode(text: str, kind: type[T], *, path: str) -> T:
    try:
        return msgspec.toml.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError is a DecodeError
        hint = (
            "put quotes around versions: 12.10 unquoted is the number 12.1"
            if "`float`" in str(error)
            else None
        )
        raise InvalidFileError(
            str(error), path=path, fix=hint or "correct the file at the place named"
        ) from error
