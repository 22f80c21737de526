"""Blobs and manifests into a repository of a registry: what it has is not sent."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import msgspec

from repro_image.adapters.registry_session import Answer, RegistrySession
from repro_image.adapters.store import CHUNK_BYTES
from repro_image.adapters.web import TryAgainError, safe_url
from repro_image.core.reference import sha256_digest
from repro_image.errors import DownloadError, PushError

OnBytes = Callable[[int], None]


class Blob(NamedTuple):
    """One file that goes to a registry under its digest."""

    digest: str
    size_bytes: int
    path: Path


def push_blob(session: RegistrySession, blob: Blob, *, on_bytes: OnBytes) -> bool:
    """Send a blob unless the repository has it; return whether it was sent.

    on_bytes: called with the number of bytes of each piece; negative when a part has to be sent again.
    Raises: PushError after bounded attempts, RegistryAccessError, CredentialsError.
    """
    try:
        if session.has_blob(blob.digest):
            return False
        _Upload(session, blob, on_bytes).run()
    except DownloadError as error:
        raise PushError(session.reference, reason=error.reason, where=error.where) from error
    return True


def push_document(session: RegistrySession, data: bytes, *, media_type: str, name: str | None = None) -> str:
    """Store a manifest or index and read it back; return its digest.

    name: tag under which it is stored; None: its digest alone.
    Raises: PushError, RegistryAnswerError, RegistryAccessError, CredentialsError.
    """
    digest = sha256_digest(data)
    url = f"{session.address}/manifests/{name or digest}"
    headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
    try:
        answer = session.patiently("PUT", url, headers=headers, body=lambda: [data])
        _require(session, answer, url, 200, 201, 202)
        found = sha256_digest(session.get("manifests", name or digest, limit_bytes=len(data))[0])
    except DownloadError as error:
        raise PushError(session.reference, reason=error.reason, where=error.where) from error
    if found != digest:
        raise PushError(session.reference, reason=f"it was stored as {found}", where=safe_url(url))
    return digest


class _Upload:
    """One blob on its way. A registry need not keep the part that came before a cut, and Debian's does not:
    what was cut is sent again from its first byte.
    """

    def __init__(self, session: RegistrySession, blob: Blob, on_bytes: OnBytes) -> None:
        self._session, self._blob, self._on_bytes, self._told = session, blob, on_bytes, 0

    def run(self) -> None:
        url = f"{self._session.address}/blobs/uploads/"
        self._session.web.patiently(lambda: self._attempt(url), url=url, name=self._blob.digest)

    def _attempt(self, url: str) -> None:
        self._tell(0)
        answer = self._session.ask("POST", url, headers={"Content-Length": "0"})
        _require(self._session, answer, url, 202)
        place = self._place(answer, url)
        sent_to = f"{place}{'&' if urlsplit(place).query else '?'}digest={self._blob.digest}"
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(self._blob.size_bytes),
        }
        answer = self._session.ask("PUT", sent_to, headers=headers, body=self._content)
        _require(self._session, answer, place, 201, 204)

    def _place(self, answer: Answer, url: str) -> str:
        """Return where the registry wants the bytes: credentials and layers go to no other server."""
        place = urljoin(url, answer.headers.get("location", ""))
        if urlsplit(place)[:2] != urlsplit(self._session.address)[:2]:
            reason = f"it wants the bytes at another server, {safe_url(place)}"
            raise PushError(self._session.reference, reason=reason, where=safe_url(url))
        return place

    def _content(self) -> Iterator[bytes]:
        self._tell(0)
        with self._blob.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                if self._session.web.stop.is_set():
                    raise TryAgainError("interrupted")
                yield chunk
                self._tell(self._told + len(chunk))

    def _tell(self, count: int) -> None:
        self._on_bytes(count - self._told)
        self._told = count


class _Fault(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _Faults(msgspec.Struct, frozen=True):
    errors: tuple[_Fault, ...] = ()


def _require(session: RegistrySession, answer: Answer, url: str, *expected: int) -> None:
    """Raise PushError, with the registry's own words, for any other answer."""
    if answer.status in expected:
        return
    try:
        faults = msgspec.json.decode(answer.body, type=_Faults).errors
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        faults = ()
    told = "; ".join(f"{fault.code}: {fault.message}"[:200] for fault in faults[:3])
    reason = f"the registry answers {answer.status}{f' ({told})' if told else ''}"
    raise PushError(session.reference, reason=reason, where=safe_url(url))
