"""One repository of a registry over HTTP: who we are there, and documents by digest."""

import base64
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlencode, urlsplit
from urllib.request import parse_http_list, parse_keqv_list

import msgspec

from repro_image.adapters.web import TryAgainError, Web, safe_url
from repro_image.core.oci import (
    DOCUMENT_LIMIT_BYTES,
    INDEXES,
    MANIFESTS,
    Index,
    Manifest,
    parse_document,
)
from repro_image.core.reference import is_digest, sha256_digest
from repro_image.errors import (
    CredentialsError,
    DownloadError,
    NotInRegistryError,
    RegistryAccessError,
    RegistryAnswerError,
)

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_ACCEPT = ", ".join((*INDEXES, *MANIFESTS))
_DIGEST_HEADER = "Docker-Content-Digest"
Body: TypeAlias = Callable[[], Iterable[bytes]]
Actions: TypeAlias = Literal["pull", "pull,push"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """headers: with their names in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class RegistrySession:
    """One repository at one address. Credentials are looked up when it asks for them, and go nowhere else.

    Safe to use from several threads.
    reference: registry, repository and tag; the registry's name is the one that credentials are kept under.
    address:   where to ask, such as ``https://ghcr.io``.
    actions:   what we want to do: ``pull``, or ``pull,push``.
    """

    def __init__(self, reference: str, address: str, web: Web, *, actions: Actions = "pull") -> None:
        self.reference, self.web, self.name = reference, web, f"the manifest of {reference}"
        repository, _, self.tag = reference.rpartition(":")
        self.registry, _, path = repository.partition("/")
        if self.registry == "docker.io" and "/" not in path:
            path = f"library/{path}"
        self.address, self._path, self._actions = f"{address.rstrip('/')}/v2/{path}", path, actions
        self._authorization: dict[str, str] = {}

    def document(self, name: str) -> tuple[str, Index | Manifest]:
        """Return the manifest or index that a tag or digest names, with its digest.

        Raises: NotInRegistryError, RegistryAccessError, RegistryAnswerError, CredentialsError, DownloadError.
        """
        body, media_type = self.get("manifests", name, limit_bytes=DOCUMENT_LIMIT_BYTES)
        found = sha256_digest(body)
        try:
            return found, parse_document(body, media_type=media_type)
        except ValueError as error:
            raise self.refused(found, str(error)) from error

    def get(self, kind: Literal["manifests", "blobs"], name: str, *, limit_bytes: int) -> tuple[bytes, str]:
        """Return a document and its media type; what is asked for by digest has that digest."""
        url = f"{self.address}/{kind}/{name}"
        headers = {"Accept": _ACCEPT} if kind == "manifests" else {}
        limit_bytes = min(limit_bytes, DOCUMENT_LIMIT_BYTES)
        answer = self.patiently("GET", url, headers=headers, limit_bytes=limit_bytes)
        if answer.status == 404:
            raise NotInRegistryError(self.reference, what=self._missing(url), where=safe_url(url))
        expected = name if is_digest(name) else answer.headers.get(_DIGEST_HEADER.lower())
        found = sha256_digest(answer.body)
        if expected not in (None, found):
            raise self.refused(str(expected), f"the bytes that came have the digest {found}")
        return answer.body, answer.media_type

    def has_blob(self, digest: str) -> bool:
        """Tell whether the repository has a blob. Raises: RegistryAccessError, DownloadError."""
        return self.patiently("HEAD", f"{self.address}/blobs/{digest}").status == 200

    def blob_address(self, digest: str) -> str | None:
        """Return where a blob is downloaded, which `web` may do from now on; None where it is not there.

        Raises: as has_blob.
        """
        if not self.has_blob(digest):
            return None
        if self._authorization:
            scheme, _, token = self._authorization["Authorization"].partition(" ")
            self.web.authorize(self.address, token, scheme=scheme)
        return f"{self.address}/blobs/{digest}"

    def patiently(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        limit_bytes: int = DOCUMENT_LIMIT_BYTES,
    ) -> Answer:
        """Return what ``ask`` returns, called again while the registry is busy or cannot be reached."""
        return self.web.patiently(
            lambda: self.ask(method, url, headers=headers, body=body, limit_bytes=limit_bytes),
            url=url,
            name=self.name,
        )

    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        limit_bytes: int = DOCUMENT_LIMIT_BYTES,
    ) -> Answer:
        """Ask once, and once more with what the registry wants to see when it asks who we are.

        Raises: TryAgainError for what may pass; RegistryAccessError. Other answers are the caller's to judge.
        """
        known = self._authorization
        answer = self._once(method, url, {**(headers or {}), **known}, body, limit_bytes=limit_bytes)
        if answer.status == 401:  # also when a token has run out
            known = self._authorization = self._authorize(url, answer.headers.get("www-authenticate", ""))
            if known:
                answer = self._once(method, url, {**(headers or {}), **known}, body, limit_bytes=limit_bytes)
        if answer.status in (401, 403):
            self._authorization = {}
            raise self._no_access(answer.status, url)
        return answer

    def refused(self, what: str, reason: str) -> RegistryAnswerError:
        return RegistryAnswerError(self.reference, what=what, reason=reason)

    def _once(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None, *, limit_bytes: int
    ) -> Answer:
        sent = {"Accept-Encoding": "identity", **headers}
        content = body() if body else None
        with self.web.request(
            url, headers=sent, name=self.name, method=method, body=content, with_pip=False
        ) as (response, _):
            self.web.require_ready(response)
            if method == "GET" and response.status not in (401, 403, 404):
                self.web.require_ok(response, url=url, name=self.name)
            limit_bytes = limit_bytes if response.status == 200 else DOCUMENT_LIMIT_BYTES
            found = _read(response, limit_bytes=limit_bytes)
            if found is None:
                raise self.refused(safe_url(url), f"it is larger than {limit_bytes:,} bytes")
            lower = {key.lower(): value for key, value in response.headers.items()}
            return Answer(status=response.status, body=found, headers=lower)

    def _authorize(self, url: str, challenge: str) -> dict[str, str]:
        """Return the header that answers ``challenge``: a token, anonymous without credentials, or those.

        Empty where there is nothing to answer with.
        """
        credentials = docker_credentials(self.registry)
        basic = {"Authorization": f"Basic {_base64(credentials)}"} if credentials else {}
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() != "bearer":
            return basic
        asked = parse_keqv_list([part for part in parse_http_list(rest) if "=" in part])
        realm = str(asked.get("realm", ""))
        if urlsplit(realm).scheme not in ("http", "https"):
            raise self.refused(safe_url(url), "it names no address to get a token from")
        self.web.check_redirect(url, realm, name=f"a token for {self.reference}")
        query = {"service": asked.get("service", ""), "scope": f"repository:{self._path}:{self._actions}"}
        token_url = f"{realm}?{urlencode(query)}"
        answer = self._once("GET", token_url, basic, None, limit_bytes=DOCUMENT_LIMIT_BYTES)
        if answer.status != 200:
            raise self._no_access(answer.status, realm)
        try:
            token = msgspec.json.decode(answer.body, type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self.refused(safe_url(realm), f"its token is none: {error}") from error
        return {"Authorization": f"Bearer {token.token or token.access_token}"}

    def _missing(self, url: str) -> str:
        """Say what of an image the registry lacks, which one 404 does not tell."""
        name = url.rpartition("/")[2]
        if name != self.tag:
            return f"{name}, which the tag names,"
        tags = f"{self.address}/tags/list?n=1"
        try:
            answer = self._once("GET", tags, self._authorization, None, limit_bytes=2**20)
        except (TryAgainError, DownloadError):
            return f"the tag {self.tag!r}"
        return "the repository" if answer.status == 404 else f"the tag {self.tag!r}"

    def _no_access(self, status: int, url: str) -> RegistryAccessError:
        return RegistryAccessError(self.reference, status=status, registry=self.registry, where=safe_url(url))


def docker_credentials(registry: str) -> str | None:
    """Return ``user:password`` that the user's docker configuration has for ``registry``.

    Raises: CredentialsError when a credential helper fails.
    """
    from docker import auth, errors

    try:
        with warnings.catch_warnings():  # of a helper that is missing; the error that follows says it
            warnings.simplefilter("ignore")
            found = auth.load_config().resolve_authconfig(registry) or {}
    except errors.DockerException as error:
        raise CredentialsError(registry, reason=str(error)) from error
    known = {key.lower(): value for key, value in found.items()}  # credential helpers write Username
    user, password = known.get("username"), known.get("password")
    return f"{user}:{password}" if user and password else None


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


def _read(response: "BaseHTTPResponse", *, limit_bytes: int) -> bytes | None:
    """Return the body, or None when it is longer than the limit."""
    body = bytearray()
    chunk: Any
    while chunk := response.read(2**16, decode_content=False):
        body += chunk
        if len(body) > limit_bytes:
            return None
    return bytes(body)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
