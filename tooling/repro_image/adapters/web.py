"""Requests over HTTP: one place for certificates, proxies, credentials, redirects and time-outs."""

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

import msgspec

from repro_image.adapters.pip_settings import PipSettings, redact
from repro_image.errors import DownloadError, GoneError, RateLimitError, RefusedError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

PAGE_LIMIT_BYTES = 64 * 2**20
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_REASONS = {
    401: "the server asks for credentials (401)",
    403: "the server refuses access (403)",
    404: "the server does not have it (404)",
    410: "the server no longer has it (410)",
}

_KINDS = {401: RefusedError, 403: RefusedError, 404: GoneError, 410: GoneError}

T = TypeVar("T")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How patient to be; attempts counts tries in a row that bring nothing."""

    attempts: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    slowest_bytes_per_s: float = 1024.0
    redirects: int = 5


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """url: where it came from in the end, which relative links start from."""

    url: str
    content_type: str
    body: bytes


class TryAgainError(Exception):
    """One attempt failed in a way that another may not.

    wait_s:     what the server asked for.
    is_limited: the server refused because it was asked too often.
    """

    def __init__(self, reason: str, *, wait_s: float | None = None, is_limited: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait_s, self.is_limited = reason, wait_s, is_limited

    def final(self, name: str, *, attempts: int, where: str) -> DownloadError:
        """Return what to tell when no further attempt is made."""
        kind = RateLimitError if self.is_limited else DownloadError
        return kind(name, reason=f"{self.reason}, {attempts} times", where=safe_url(where))


class Web:
    """HTTP with this machine's pip settings. Safe to use from several threads.

    stop: set to end all waiting.
    """

    def __init__(self, settings: PipSettings, *, limits: Limits | None = None) -> None:
        self.settings, self.limits = settings, limits or Limits()
        self.stop = threading.Event()
        self._tokens: dict[tuple[str, str, int | None], str] = {}
        self._pools: dict[tuple[str | None, bool], PoolManager] = {}
        self._lock = threading.Lock()
        addresses = (*settings.indexes, *settings.find_links)
        self._credentials = {
            _origin(address): found for address in addresses if (found := _user_info(address))
        }

    def page(self, url: str, *, accept: str, name: str) -> Page | None:
        """Return a small document, or None when the server says that it does not exist.

        Raises: DownloadError after bounded attempts, or when the page is larger than PAGE_LIMIT_BYTES.
        """
        return self.patiently(lambda: self._page(url, accept=accept, name=name), url=url, name=name)

    def patiently(self, act: Callable[[], T], *, url: str, name: str) -> T:
        """Return what ``act`` returns, called again after each TryAgainError. Raises: DownloadError."""
        for attempt in range(self.limits.attempts):
            try:
                return act()
            except TryAgainError as error:
                last = error
            if attempt + 1 < self.limits.attempts:
                self.wait(attempt, last)
        raise last.final(name, attempts=self.limits.attempts, where=url)

    def authorize(self, url: str, token: str, *, scheme: str = "Bearer") -> None:
        """Send ``token`` to the server of ``url``, and to no other, with requests that bring none."""
        self._tokens[_origin(url)] = f"{scheme} {token}"

    def size_bytes(self, url: str, *, name: str) -> int:
        """Return the size of a file as its server gives it. Raises: DownloadError."""
        try:
            with self.request(url, method="HEAD", headers={}, name=name) as (response, _):
                self.require_ok(response, url=url, name=name)
                length = response.headers.get("Content-Length", "")
        except TryAgainError as error:
            raise DownloadError(name, reason=error.reason, where=safe_url(url)) from error
        if not length.isdecimal():
            raise DownloadError(name, reason="the server does not tell its size", where=safe_url(url))
        return int(length)

    @contextmanager
    def request(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        name: str,
        method: str = "GET",
        body: Iterable[bytes] | None = None,
        with_pip: bool = True,
    ) -> Iterator[tuple["BaseHTTPResponse", str]]:
        """Yield the response, body unread, and its address, after redirects that are safe to follow.

        Credentials go to the server that they are configured for and to no other.
        body:     what is sent; a redirect of it is not followed.
        with_pip: whether a server of pip's settings gets the login from there. There is one login at most.
        Raises: TryAgainError for what may pass; DownloadError for what will not, such as TLS errors.
        """
        url = self._take_credentials(url)
        for _ in range(self.limits.redirects + 1):
            response = self._send(method, url, headers=headers, name=name, body=body, with_pip=with_pip)
            try:
                if response.status not in _REDIRECTS or body is not None:
                    with self._read_errors(url, name=name):
                        yield response, url
                    return
                target = urljoin(url, response.headers.get("Location", ""))
            finally:
                response.close()
            self.check_redirect(url, target, name=name)
            if _origin(url) != _origin(target):
                headers = {key: value for key, value in headers.items() if key != "Authorization"}
            url = _without_user_info(target)
        raise DownloadError(name, reason="too many redirects", where=safe_url(url))

    def require_ok(self, response: "BaseHTTPResponse", *, url: str, name: str) -> None:
        """Raise TryAgainError for a busy server and DownloadError for any other answer than 2xx."""
        self.require_ready(response)
        if not 200 <= response.status < 300:
            reason = _REASONS.get(response.status, f"the server answers {response.status}")
            raise _KINDS.get(response.status, DownloadError)(name, reason=reason, where=safe_url(url))

    def require_ready(self, response: "BaseHTTPResponse") -> None:
        """Raise TryAgainError for a busy server."""
        if response.status in _BUSY:
            wait_s = _retry_after(response.headers.get("Retry-After", ""))
            reason = f"the server answers {response.status}"
            raise TryAgainError(reason, wait_s=wait_s, is_limited=response.status == 429)

    def body(self, response: "BaseHTTPResponse", *, url: str, name: str) -> bytes:
        """Return the body of a small document. Raises: DownloadError when it is above PAGE_LIMIT_BYTES."""
        body = bytearray()
        while chunk := response.read(2**16, decode_content=True):
            body += chunk
            if len(body) > PAGE_LIMIT_BYTES:
                raise DownloadError(name, reason="the page does not end", where=safe_url(url))
        return bytes(body)

    def wait(self, attempt: int, error: TryAgainError) -> None:
        """Wait as long as the server asked, or longer with each attempt; never longer than the limit."""
        wished_s = error.wait_s if error.wait_s is not None else self.limits.first_wait_s * 2**attempt
        self.stop.wait(min(wished_s, self.limits.longest_wait_s))
        if self.stop.is_set():
            raise TryAgainError("interrupted")

    def _page(self, url: str, *, accept: str, name: str) -> Page | None:
        with self.request(url, headers={"Accept": accept, "Accept-Encoding": "gzip"}, name=name) as (
            response,
            found,
        ):
            if response.status in (404, 410):
                return None
            self.require_ok(response, url=url, name=name)
            body = self.body(response, url=url, name=name)
            content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            return Page(url=found, content_type=content_type, body=body)

    def _send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        name: str,
        body: Iterable[bytes] | None,
        with_pip: bool,
    ) -> "BaseHTTPResponse":
        import urllib3

        sent = dict(headers)
        if "Authorization" not in sent:
            token = self._tokens.get(_origin(url))
            credentials = self._credentials.get(_origin(url)) if with_pip else None
            if token:
                sent["Authorization"] = token
            elif credentials:
                sent["Authorization"] = urllib3.make_headers(basic_auth=credentials)["authorization"]
        with self._read_errors(url, name=name):
            return self._pool(url).request(
                method,
                url,
                headers=sent,
                body=body,
                preload_content=False,
                redirect=False,
                retries=False,
                timeout=self._timeout(),
            )

    @contextmanager
    def _read_errors(self, url: str, *, name: str) -> Iterator[None]:
        from urllib3 import exceptions

        try:
            yield
        except exceptions.SSLError as error:
            reason = f"the server's certificate is not accepted: {redact(str(error))}"
            fix = "check the machine's clock and certificates (`cert` of pip, or `ca` in [tool.repro-image])"
            raise DownloadError(name, reason=reason, where=safe_url(url), fix=fix) from error
        except exceptions.NameResolutionError as error:
            raise TryAgainError(f"the name of the server {urlsplit(url).hostname} is not known") from error
        except exceptions.ProxyError as error:
            raise TryAgainError(
                f"the proxy failed: {self.settings.redact(str(error.original_error))}"
            ) from error
        except exceptions.ProtocolError as error:
            if not _is_cut_short(error):
                raise TryAgainError(f"the connection failed: {error.args[0]}") from error
            raise TryAgainError("the connection ended early") from error
        except exceptions.NewConnectionError as error:  # urllib3 counts it as a time-out
            raise TryAgainError(f"the connection failed: {self.settings.redact(str(error))[:300]}") from error
        except exceptions.TimeoutError as error:
            raise TryAgainError(f"no answer within {self.settings.timeout_s:.0f} s") from error
        except (exceptions.HTTPError, OSError) as error:
            raise TryAgainError(f"the connection failed: {self.settings.redact(str(error))[:300]}") from error

    def _timeout(self) -> Any:
        import urllib3

        return urllib3.Timeout(connect=min(15.0, self.settings.timeout_s), read=self.settings.timeout_s)

    def _take_credentials(self, url: str) -> str:
        if found := _user_info(url):
            self._credentials.setdefault(_origin(url), found)
        return _without_user_info(urldefrag(url).url)

    def check_redirect(self, url: str, target: str, *, name: str) -> None:
        """Raise DownloadError where the server at ``url`` must not send us to ``target``."""
        before, after = urlsplit(url), urlsplit(target)
        refused = None
        if after.scheme not in ("http", "https") or not after.hostname:
            refused = "to something that is not a web address"
        elif (before.scheme, after.scheme) == ("https", "http"):
            refused = "from https to http"
        elif (
            before.hostname != after.hostname
            and _is_private(after.hostname)
            and not _is_private(before.hostname or "")
        ):
            refused = "from a public server to a private address"
        if refused:
            reason = f"the server redirects {refused} ({safe_url(target)}), which is refused"
            raise DownloadError(
                name, reason=reason, where=safe_url(url), fix="use an address that needs no such redirect"
            )

    def _pool(self, url: str) -> "PoolManager":
        import urllib3

        parts = urlsplit(url)
        names = {parts.hostname, parts.netloc.rpartition("@")[2]}
        proxy, is_trusted = self._proxy(url), bool(names & set(self.settings.trusted_hosts))
        with self._lock:
            if (proxy, is_trusted) not in self._pools:
                options: dict[str, Any] = {"num_pools": 16, "maxsize": 16}
                options |= {"ca_certs": self.settings.ca} if self.settings.ca else {}
                options |= {"cert_file": self.settings.client_cert} if self.settings.client_cert else {}
                options |= {"cert_reqs": "CERT_NONE" if is_trusted else "CERT_REQUIRED"}
                self._pools[proxy, is_trusted] = (
                    _proxied(proxy, options) if proxy else urllib3.PoolManager(**options)
                )
            return self._pools[proxy, is_trusted]

    def _proxy(self, url: str) -> str | None:
        parts = urlsplit(url)
        proxies = {
            name.lower().removesuffix("_proxy"): value for name, value in self.settings.proxies.items()
        }
        if _is_exempt(parts.hostname or "", proxies.get("no", "")):
            return None
        found = self.settings.options.get("proxy") or proxies.get(parts.scheme) or proxies.get("all")
        return found if found is None or "://" in found else f"http://{found}"


def _is_cut_short(error: Exception) -> bool:
    """Tell whether urllib3 wraps an IncompleteRead: the body ended before its announced length."""
    from urllib3.exceptions import IncompleteRead

    return isinstance(error, IncompleteRead) or any(isinstance(part, IncompleteRead) for part in error.args)


def safe_url(url: str) -> str:
    """Return ``url`` without user, password, query and fragment: fit for messages."""
    parts = urlsplit(_without_user_info(url))
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def _is_exempt(host: str, no_proxy: str) -> bool:
    """Tell whether NO_PROXY, a list such as ``.example.org, localhost``, names the host or its domain."""
    names = [name.strip().lstrip(".").partition(":")[0].lower() for name in no_proxy.split(",")]
    return any(name and (name == "*" or host == name or host.endswith(f".{name}")) for name in names)


def _proxied(proxy: str, options: Mapping[str, Any]) -> "PoolManager":
    import urllib3

    found = _user_info(proxy)
    headers = urllib3.make_headers(proxy_basic_auth=found) if found else None
    return urllib3.ProxyManager(_without_user_info(proxy), proxy_headers=headers, **options)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _user_info(url: str) -> str | None:
    parts = urlsplit(url)
    return f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None


def _without_user_info(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _is_private(host: str) -> bool:
    try:
        addresses = [ipaddress.ip_address(host)]
    except ValueError:
        try:
            addresses = [ipaddress.ip_address(row[4][0]) for row in socket.getaddrinfo(host, None)]
        except OSError:  # behind a proxy, names need not resolve here
            return False
    return any(address.is_private or address.is_loopback or address.is_link_local for address in addresses)


def _retry_after(text: str) -> float | None:
    """Return the seconds of a Retry-After header, which holds a number or a date."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (TypeError, ValueError):
        return None
