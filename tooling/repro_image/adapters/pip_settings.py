"""The machine's own pip configuration: what it says, and what a pip in a container needs to see the same.

The configuration is the user's and is honoured; its addresses and credentials never reach a lock, a log or an
error message.
"""

import ast
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from repro_image.errors import PipConfigurationError

# Later ones win: pip reads [global], then the command's own section, then the environment.
_SECTIONS = ("global", "install", ":env:")
# Options that decide where packages come from or which are seen; the rest of a pip.conf is about installing.
_FORWARDED = ("pre", "prefer-binary", "uploaded-prior-to", "retries", "proxy")
_ALIASES = {
    "default-timeout": "timeout",
    "pypi-url": "index-url",
    "i": "index-url",
    "f": "find-links",
    "c": "constraint",
}
_LINE = re.compile(r"(?P<section>[^.\s]+)\.(?P<key>[a-z0-9-]+)=(?P<value>['\"].*)")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_NESTED = re.compile(r"\s*(?:-c|--constraint|-r|--requirement)[\s=]+(?P<path>[^\s#]+)")
_USER_INFO = re.compile(r"(?<=://)[^\s/'\"]*@")


class PipSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where this machine's pip looks for packages.

    index_url:   None with ``no-index``.
    ca:          file with the certificates to trust; None where the machine has none.
    constraints: files or addresses, as configured.
    proxies:     environment variables, such as HTTPS_PROXY.
    timeout_s:   seconds without a byte after which a server counts as gone.
    options:     further options that change what is seen, such as ``pre``.
    """

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    ca: str | None = None
    client_cert: str | None = None
    trusted_hosts: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    proxies: Mapping[str, str] = msgspec.field(default_factory=dict)
    timeout_s: float = 15.0
    options: Mapping[str, str] = msgspec.field(default_factory=dict)

    @property
    def indexes(self) -> tuple[str, ...]:
        """All indexes, the main one first."""
        return (*([self.index_url] if self.index_url else []), *self.extra_index_urls)

    def redact(self, text: str) -> str:
        """Return ``text`` without the credentials of any address in it, nor those of this configuration."""
        for secret in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(secret, "***")
        return redact(text)

    def mounts(self) -> tuple[Path, ...]:
        """Return the local files and folders that a pip elsewhere must find under the same path."""
        found = {Path(name) for name in (self.ca, self.client_cert) if name}
        for link in self.find_links:
            if (path := local_path(link)) is not None:
                found.add(path if path.is_dir() else path.parent)
        for index in self.indexes:
            if (path := local_path(index)) is not None:
                # The pages of such an index link to ../../files.
                found.add(path.parent if path.parent != Path("/") else path)
        for constraint in self.constraints:
            found.update(_with_nested(constraint))
        return tuple(sorted(path.absolute() for path in found if path.exists()))

    def configuration(self) -> str:
        """Return a pip.conf that says the same; constraints are not in it, resolvers take them apart."""
        lists = {
            "extra-index-url": self.extra_index_urls,
            "find-links": tuple(str(local_path(link) or link) for link in self.find_links),
            "trusted-host": self.trusted_hosts,
        }
        values = {key: "\n    ".join(("", *entries)) for key, entries in lists.items() if entries}
        values |= {"index-url": self.index_url} if self.index_url else {"no-index": "true"}
        values |= {"cert": self.ca} if self.ca else {}
        values |= {"client-cert": self.client_cert} if self.client_cert else {}
        values |= {"timeout": f"{self.timeout_s:.0f}", **self.options}
        return "[global]\n" + "".join(f"{key} = {value}\n" for key, value in sorted(values.items()))

    def _secrets(self) -> Iterator[str]:
        addresses = (
            *self.indexes,
            *self.find_links,
            *self.constraints,
            *self.proxies.values(),
            *self.options.values(),
        )
        for address in addresses:
            parts = urlsplit(address)
            for secret in (parts.password, parts.username if not parts.password else None):
                # A short user name such as `a` alone would blank out half of every message.
                if secret and len(secret) > 3:
                    yield from {secret, unquote(secret)}


def redact(text: str) -> str:
    """Return ``text`` with ``user:password@`` of every address replaced by ``***@``."""
    return _USER_INFO.sub("***@", text)


def local_path(address: str) -> Path | None:
    """Return the path behind a ``file:`` address or a plain path, or None for what is on the network."""
    parts = urlsplit(address)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if parts.scheme and "://" in address else Path(address).expanduser().absolute()


def read_pip_settings(*, ca: str | None = None, environment: Mapping[str, str] | None = None) -> PipSettings:
    """Return what ``pip config list`` and the environment say here.

    ca: the project's own certificates, instead of the machine's.
    Raises: PipConfigurationError when pip cannot read its own configuration.
    """
    environment = os.environ if environment is None else environment
    command = [sys.executable, "-m", "pip", "config", "list"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(environment))
    if run.returncode != 0:
        last = redact((run.stderr or run.stdout).strip()[-1000:])
        raise PipConfigurationError(last)
    return parse_pip_settings(run.stdout, ca=ca, environment=environment)


def default_index() -> str:
    """Return the index that pip asks where nothing is configured; pip alone knows its address."""
    from pip._internal.models.index import PyPI

    return str(PyPI.simple_url).rstrip("/")


def parse_pip_settings(listing: str, *, ca: str | None, environment: Mapping[str, str]) -> PipSettings:
    """Return the settings that the output of ``pip config list`` holds."""
    values = _merged(listing)
    index = values.get("index-url") or default_index()
    cert = values.get("cert") or next(
        (environment[name] for name in _CA_VARIABLES if environment.get(name)), None
    )
    return PipSettings(
        index_url=None if _is_true(values.get("no-index")) else index,
        extra_index_urls=()
        if _is_true(values.get("no-index"))
        else tuple(values.get("extra-index-url", "").split()),
        find_links=tuple(values.get("find-links", "").split()),
        ca=_existing(ca or cert) or _existing(ssl.get_default_verify_paths().cafile) or _bundled(),
        client_cert=values.get("client-cert"),
        trusted_hosts=tuple(values.get("trusted-host", "").split()),
        constraints=tuple(values.get("constraint", "").split()),
        proxies={name: value for name, value in environment.items() if name.upper() in _PROXIES and value},
        timeout_s=_seconds(values.get("timeout")),
        options={key: values[key] for key in _FORWARDED if key in values},
    )


def _merged(listing: str) -> dict[str, str]:
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listing.splitlines():
        match = _LINE.fullmatch(line)
        if match and match["section"] in found:
            found[match["section"]][_ALIASES.get(match["key"], match["key"])] = str(
                ast.literal_eval(match["value"])
            )
    return {key: value for section in _SECTIONS for key, value in found[section].items()}


def _is_true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("1", "true", "yes", "on", "y", "t")


def _seconds(value: str | None) -> float:
    try:
        return max(1.0, float(value)) if value else 15.0
    except ValueError as error:
        raise PipConfigurationError(f"timeout = {value!r} is not a number") from error


def _existing(name: str | None) -> str | None:
    if name is None:
        return None
    path = Path(name).expanduser().absolute()
    return str(path) if path.is_file() else None


def _bundled() -> str:
    """Return the certificates that pip itself brings along."""
    from pip._vendor import certifi

    return str(certifi.where())


def _with_nested(constraint: str) -> Iterator[Path]:
    """Yield a local constraints file and those that it includes."""
    waiting, seen = [local_path(constraint)], set[Path]()
    while waiting:
        path = waiting.pop()
        if path is None or path in seen or not path.is_file():
            continue
        seen.add(path)
        yield path
        lines = path.read_text(errors="replace").splitlines()
        nested = [match["path"] for line in lines if (match := _NESTED.match(line))]
        waiting.extend(local_path(str(path.parent / name)) for name in nested if "://" not in name)
