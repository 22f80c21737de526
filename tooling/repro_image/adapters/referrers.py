"""Documents beside an image in its registry, without changing it: manifests whose subject is the image's.

A registry lists them, or else an index under the tag ``sha256-<hex>`` does.
Source: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#listing-referrers
"""

from typing import Any

import msgspec

from repro_image.adapters.registry_push import Blob, push_blob, push_document
from repro_image.adapters.registry_session import RegistrySession
from repro_image.adapters.store import Store
from repro_image.core.oci import DOCUMENT_LIMIT_BYTES, INDEXES, MANIFESTS
from repro_image.core.reference import sha256_digest
from repro_image.errors import NotInRegistryError

_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One document. media_type: of its bytes, and what kind of referrer it is."""

    media_type: str
    data: bytes
    title: str


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest that documents are attached to."""

    media_type: str
    digest: str
    size: int


def attach(session: RegistrySession, subject: Subject, attachment: Attachment, *, store: Store) -> str:
    """Store ``attachment`` beside ``subject`` and return the digest of its manifest.

    The same bytes have the same digest: attaching twice changes nothing. Raises: PushError and what reading
    from the registry raises.
    """
    content, empty = sha256_digest(attachment.data), sha256_digest(_EMPTY)
    with store.workspace() as folder:
        for digest, data in ((content, attachment.data), (empty, _EMPTY)):
            path = folder / digest.removeprefix("sha256:")
            path.write_bytes(data)
            push_blob(session, Blob(digest, len(data), path), on_bytes=lambda _count: None)
    manifest = _manifest(subject, attachment, content)
    digest = push_document(session, manifest, media_type=MANIFESTS[0])
    _list(
        session,
        subject,
        {
            "mediaType": MANIFESTS[0],
            "digest": digest,
            "size": len(manifest),
            "artifactType": attachment.media_type,
            "annotations": {"org.opencontainers.image.title": attachment.title},
        },
    )
    return digest


def referrers(session: RegistrySession, digest: str) -> tuple[dict[str, Any], ...]:
    """Return the descriptors of what is attached to the manifest ``digest``."""
    found = _by_list(session, digest)
    return found if found is not None else _by_tag(session, digest)


def _manifest(subject: Subject, attachment: Attachment, content: str) -> bytes:
    fields = {
        "schemaVersion": 2,
        "mediaType": MANIFESTS[0],
        "artifactType": attachment.media_type,
        "config": {"mediaType": _EMPTY_TYPE, "digest": sha256_digest(_EMPTY), "size": len(_EMPTY)},
        "layers": [
            {
                "mediaType": attachment.media_type,
                "digest": content,
                "size": len(attachment.data),
                "annotations": {"org.opencontainers.image.title": attachment.title},
            }
        ],
        "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
    }
    return msgspec.json.encode(fields, order="sorted")


def _list(session: RegistrySession, subject: Subject, descriptor: dict[str, Any]) -> None:
    """Write the descriptor into the fallback index, where the registry keeps no list of its own."""
    if _by_list(session, subject.digest) is not None:
        return
    known = _by_tag(session, subject.digest)
    if any(entry["digest"] == descriptor["digest"] for entry in known):
        return
    fields = {"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": [*known, descriptor]}
    data = msgspec.json.encode(fields, order="sorted")
    push_document(session, data, media_type=INDEXES[0], name=_tag(subject.digest))


def _by_list(session: RegistrySession, digest: str) -> tuple[dict[str, Any], ...] | None:
    """Return what the registry lists, or None where it has no such list."""
    answer = session.patiently("GET", f"{session.address}/referrers/{digest}")
    if answer.status != 200 or answer.media_type != INDEXES[0]:
        return None
    return _entries(session, digest, answer.body)


def _by_tag(session: RegistrySession, digest: str) -> tuple[dict[str, Any], ...]:
    try:
        body, _ = session.get("manifests", _tag(digest), limit_bytes=DOCUMENT_LIMIT_BYTES)
    except NotInRegistryError:
        return ()
    return _entries(session, digest, body)


def _entries(session: RegistrySession, digest: str, body: bytes) -> tuple[dict[str, Any], ...]:
    try:
        index = msgspec.json.decode(body, type=_Index)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise session.refused(digest, f"its list of referrers is none: {error}") from error
    return tuple(entry for entry in index.manifests if isinstance(entry.get("digest"), str))


class _Index(msgspec.Struct, frozen=True):
    manifests: tuple[dict[str, Any], ...]


def _tag(digest: str) -> str:
    return digest.replace(":", "-")
