"""image.toml and ``[tool.repro-image]``: text -> ImageSpec and Settings; errors name the key path."""

import re
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec

from repro_image.core.reference import is_repository
from repro_image.errors import InvalidFileError

# One word, safe in a path, a Dockerfile stage name and a repository name.
_NAME = r"\A[a-z0-9]+(?:-[a-z0-9]+)*\Z"
Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=_NAME, max_length=64)]
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
RelativePath: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*\Z")
]
Positive: TypeAlias = Annotated[int, msgspec.Meta(gt=0)]
Address: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\Ahttps?://[^\s@]+\Z", max_length=500)]
EngineValue: TypeAlias = bool | int | float | str

# Names that end like a credential: their values would end up in a layer, a label or a log.
SECRET_NAME = re.compile(r".*_(?:TOKEN|SECRET|KEY|PASSWORD|CREDENTIALS?)")


class DebianBase(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="debian"
):
    """A root file system made from locked Debian packages.

    suite:    release code name, such as ``bookworm``.
    packages: package name -> why the image needs it; their dependencies come along.
    """

    suite: Annotated[str, msgspec.Meta(pattern=r"\A[a-z]+\Z")]
    packages: dict[DebianName, Line]


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


class GoldenSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The golden run.

    suite:       name of a suite that repro-image ships.
    seed:        root seed of every random choice.
    threads:     whole cores that the run gets; part of the numeric class.
    timeout_s:   seconds after which a run is ended.
    memory_gib:  memory limit of the run's container.
    engine:      arguments of ``vllm.LLM``, all explicit.
    environment: variables of the run, set in the image.
    """

    suite: Name
    threads: Positive
    timeout_s: Positive
    memory_gib: Positive
    engine: dict[Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9_]*\Z")], EngineValue]
    environment: dict[EnvName, EnvValue] = msgspec.field(default_factory=dict)
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 42


class HostConstraints(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the user demands of a machine that runs the image."""

    cpu_flags: tuple[Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9_]+\Z")], ...] = ()
    memory_gib: Positive | None = None


class ImageSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """images/<image>/image.toml."""

    format: Literal[1]
    description: Line
    platform: Literal["linux/amd64"]
    base: DebianBase
    python: PythonSpec
    model: GgufModel
    golden: GoldenSpec
    constraints: HostConstraints = msgspec.field(default_factory=HostConstraints)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[tool.repro-image]`` in pyproject.toml.

    repository:      prefix of image repositories: ``<repository>/<image>:<tag>``.
    store:           folder of the content-addressed store; None: below the user's cache folder.
    ca:              file with the certificates to trust, instead of the machine's.
    debian_mirror:   used instead of the machine's own apt sources.
    debian_snapshot: asked for a .deb that the mirror no longer has.
    indexes:         index name -> address, for the packages that image.toml maps to it.
    """

    repository: str = "repro-image"
    store: str | None = None
    ca: str | None = None
    debian_mirror: Address | None = None
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
    for name in spec.golden.environment:
        if SECRET_NAME.fullmatch(name):
            raise InvalidFileError(
                f"$.golden.environment.{name} is named like a credential, and image variables are public",
                path=path,
                fix="remove it; a golden run has no network and needs no credential",
            )
    return spec


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
