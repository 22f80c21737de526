"""A registry's HTTP API: which image a tag names, with every byte of the answer checked.

Layers are not read here; the engine pulls them.
"""

import base64
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode, urlsplit
from urllib.request import parse_http_list, parse_keqv_list

import msgspec

from repro_image.adapters.web import TryAgainError, Web, safe_url
from repro_image.core.oci import (
    DOCUMENT_LIMIT_BYTES,
    INDEXES,
    MANIFESTS,
    ImageConfig,
    Index,
    Manifest,
    for_platform,
    parse_config,
    parse_document,
    platforms,
)
from repro_image.core.reference import sha256_digest
from repro_image.errors import (
    CredentialsError,
    DownloadError,
    NoPlatformError,
    NotInRegistryError,
    RegistryAccessError,
    RegistryAnswerError,
)

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_ACCEPT = ", ".join((*INDEXES, *MANIFESTS))
_DIGEST_HEADER = "Docker-Content-Digest"


class ResolvedImage(msgspec.Struct, frozen=True, kw_only=True):
    """What a tag names.

    index:     digest of the list of platforms; None where the tag names one manifest.
    manifest:  digest of the platform's manifest.
    config_id: digest of the configuration.
    """

    index: str | None
    manifest: str
    config_id: str
    config: ImageConfig


def resolve_image(
    reference: str, *, platform: str, addresses: Sequence[str], web: Web, digest: str | None = None
) -> ResolvedImage:
    """Return what ``reference``, a registry, repository and tag, names now.

    addresses: where to ask, best first: mirrors, then the registry. The next one is asked when one cannot be
               reached or does not have the image.
    digest:    what the tag named once, asked for instead of the tag.
    Raises: NotInRegistryError, RegistryAccessError, RegistryAnswerError, NoPlatformError, CredentialsError,
        DownloadError (all exit code 5).
    """
    for address in addresses[:-1]:
        try:
            return _Session(reference, address, web).resolve(platform, digest)
        except (NotInRegistryError, RegistryAccessError, DownloadError):
            continue
    return _Session(reference, addresses[-1], web).resolve(platform, digest)


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
    user, password = found.get("username"), found.get("password")
    return f"{user}:{password}" if user and password else None


class _Session:
    """One repository at one address. Credentials are looked up when it asks for them, and go nowhere else."""

    def __init__(self, reference: str, address: str, web: Web) -> None:
        self._reference, self._web, self._name = reference, web, f"the manifest of {reference}"
        repository, _, self._tag = reference.rpartition(":")
        self._registry, _, path = repository.partition("/")
        if self._registry == "docker.io" and "/" not in path:
            path = f"library/{path}"
        self._address, self._path = f"{address.rstrip('/')}/v2/{path}", path
        self._authorization: dict[str, str] = {}

    def resolve(self, platform: str, digest: str | None) -> ResolvedImage:
        index = None
        digest, found = self._document(digest)
        if isinstance(found, Index):
            index, chosen = digest, for_platform(found, platform)
            if chosen is None:
                raise NoPlatformError(self._reference, platform=platform, known=platforms(found.manifests))
            digest, found = self._document(chosen.digest)
        if not isinstance(found, Manifest):
            raise self._refused(digest, "the index names another index, not a manifest")
        body = self._get("blobs", found.config.digest, limit_bytes=found.config.size)[0]
        try:
            config = parse_config(body)
        except ValueError as error:
            raise self._refused(found.config.digest, str(error)) from error
        if (own := f"{config.os}/{config.architecture}") != platform:
            raise NoPlatformError(self._reference, platform=platform, known=(own,))
        return ResolvedImage(index=index, manifest=digest, config_id=found.config.digest, config=config)

    def _document(self, digest: str | None) -> tuple[str, Index | Manifest]:
        """Return what the tag, or else the digest, names, with its digest."""
        body, media_type = self._get("manifests", digest or self._tag, limit_bytes=DOCUMENT_LIMIT_BYTES)
        found = sha256_digest(body)
        try:
            return found, parse_document(body, media_type=media_type)
        except ValueError as error:
            raise self._refused(found, str(error)) from error

    def _get(self, kind: Literal["manifests", "blobs"], name: str, *, limit_bytes: int) -> tuple[bytes, str]:
        """Return a document and its media type; what is asked for by digest has that digest."""
        url = f"{self._address}/{kind}/{name}"
        headers = {"Accept": _ACCEPT} if kind == "manifests" else {}
        limit_bytes = min(limit_bytes, DOCUMENT_LIMIT_BYTES)
        answer = self._web.patiently(
            lambda: self._ask(url, headers, limit_bytes=limit_bytes), url=url, name=self._name
        )
        expected = name if name != self._tag else answer.promised
        found = sha256_digest(answer.body)
        if expected not in (None, found):
            raise self._refused(str(expected), f"the bytes that came have the digest {found}")
        return answer.body, answer.media_type

    def _ask(self, url: str, headers: Mapping[str, str], *, limit_bytes: int) -> "_Answer":
        """Ask once, and once more with what the registry wants to see when it asks who we are."""
        answer = self._once(url, {**headers, **self._authorization}, limit_bytes=limit_bytes)
        if answer.status == 401 and not self._authorization:
            self._authorization = self._authorize(url, answer.challenge)
            answer = self._once(url, {**headers, **self._authorization}, limit_bytes=limit_bytes)
        if answer.status in (401, 403):
            self._authorization = {}
            raise self._no_access(answer.status, url)
        if answer.status == 404:
            raise NotInRegistryError(self._reference, what=self._missing(url), where=safe_url(url))
        return answer

    def _once(self, url: str, headers: Mapping[str, str], *, limit_bytes: int) -> "_Answer":
        sent = {"Accept-Encoding": "identity", **headers}
        with self._web.request(url, headers=sent, name=self._name) as (response, _):
            if response.status not in (401, 403, 404):
                self._web.require_ok(response, url=url, name=self._name)
            body = _read(
                response, limit_bytes=limit_bytes if response.status == 200 else DOCUMENT_LIMIT_BYTES
            )
            if body is None:
                raise self._refused(safe_url(url), f"it is larger than {limit_bytes:,} bytes")
            content_type = response.headers.get("Content-Type", "")
            return _Answer(
                status=response.status,
                body=body,
                media_type=content_type.partition(";")[0].strip().lower(),
                promised=response.headers.get(_DIGEST_HEADER),
                challenge=response.headers.get("WWW-Authenticate", ""),
            )

    def _authorize(self, url: str, challenge: str) -> dict[str, str]:
        """Return the header that answers ``challenge``: a token, anonymous without credentials, or those.

        Empty where there is nothing to answer with.
        """
        credentials = docker_credentials(self._registry)
        basic = {"Authorization": f"Basic {_base64(credentials)}"} if credentials else {}
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() != "bearer":
            return basic
        asked = parse_keqv_list([part for part in parse_http_list(rest) if "=" in part])
        realm = str(asked.get("realm", ""))
        if urlsplit(realm).scheme not in ("http", "https"):
            raise self._refused(safe_url(url), "it names no address to get a token from")
        self._web.check_redirect(url, realm, name=f"a token for {self._reference}")
        query = {"service": asked.get("service", ""), "scope": f"repository:{self._path}:pull"}
        answer = self._once(f"{realm}?{urlencode(query)}", basic, limit_bytes=DOCUMENT_LIMIT_BYTES)
        if answer.status != 200:
            raise self._no_access(answer.status, realm)
        try:
            token = msgspec.json.decode(answer.body, type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._refused(safe_url(realm), f"its token is none: {error}") from error
        return {"Authorization": f"Bearer {token.token or token.access_token}"}

    def _missing(self, url: str) -> str:
        """Say what of an image the registry lacks, which one 404 does not tell."""
        name = url.rpartition("/")[2]
        if name != self._tag:
            return f"{name}, which the tag names,"
        try:
            answer = self._once(f"{self._address}/tags/list?n=1", self._authorization, limit_bytes=2**20)
        except (TryAgainError, DownloadError):
            return f"the tag {self._tag!r}"
        return "the repository" if answer.status == 404 else f"the tag {self._tag!r}"

    def _no_access(self, status: int, url: str) -> RegistryAccessError:
        return RegistryAccessError(
            self._reference, status=status, registry=self._registry, where=safe_url(url)
        )

    def _refused(self, what: str, reason: str) -> RegistryAnswerError:
        return RegistryAnswerError(self._reference, what=what, reason=reason)


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """promised: the digest that the registry gives beside the body."""

    status: int
    body: bytes
    media_type: str
    promised: str | None
    challenge: str


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
