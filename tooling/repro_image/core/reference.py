"""Image references, tags and digests: parse, print, compare.

Grammars follow the OCI distribution specification. Every match is a ``fullmatch``: ``$`` would accept
``v1\\n``.
"""

import hashlib
import re
from typing import Annotated, TypeAlias

import msgspec

from repro_image.errors import InvalidReferenceError

# sha256:<64 lower-case hex digits>; msgspec refuses anything else while decoding. \Z, because $ accepts a
# newline.
Digest: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def sha256_digest(data: bytes) -> str:
    """Return ``sha256:<hex>`` of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    return _TAG.fullmatch(text) is not None


def is_repository(text: str) -> bool:
    return len(text) <= 255 and _REPOSITORY.fullmatch(text) is not None


def registry_of(repository: str) -> str | None:
    """Return the registry that a repository's name begins with, or None where it names none."""
    registry, slash, _ = repository.partition("/")
    is_host = "." in registry or ":" in registry or registry == "localhost"
    return registry if slash and is_host else None


def is_tagged_image(text: str) -> bool:
    """Return whether ``text`` is ``registry/repository:tag``, all of them written out, and no digest."""
    repository, _, tag = text.rpartition(":")
    return registry_of(repository) is not None and is_repository(repository) and is_tag(tag)


class ImageReference(msgspec.Struct, frozen=True, kw_only=True):
    """What a user names an image by: a repository, a tag, a digest, or a mixture; at least one is there."""

    repository: str | None = None
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        name = self.repository or ""
        if self.tag:
            name = f"{name}:{self.tag}" if name else self.tag
        if self.digest:
            name = f"{name}@{self.digest}" if name else self.digest
        return name


def parse_reference(text: str) -> ImageReference:
    """Return the parts of ``[repository][:tag][@digest]``, of a tag alone, or of a digest alone.

    A name without ``:``, ``/`` and ``@`` is a tag: verify asks for epochs, which are tags.
    Raises: InvalidReferenceError.
    """
    if is_digest(text):
        return ImageReference(digest=text)
    name, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise InvalidReferenceError(text)
    if is_tag(name) and "/" not in name and not at:
        return ImageReference(tag=name)
    repository, tag = name, None
    if ":" in name.rpartition("/")[2]:
        repository, _, tag = name.rpartition(":")
        if not is_tag(tag):
            raise InvalidReferenceError(text)
    if not is_repository(repository):
        raise InvalidReferenceError(text)
    return ImageReference(repository=repository, tag=tag, digest=digest or None)
