"""Package indexes and find-links: which wheels there are of a project, and which one a pin means.

A source is asked only while the ones before it had nothing: find-links first, then pip's extra indexes, then
its main one. A project that image.toml maps to a named index is looked for there and in find-links only.
"""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import msgspec
from packaging.specifiers import SpecifierSet
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from repro_image.adapters.pip_settings import PipSettings, local_path, read_pip_settings
from repro_image.adapters.store import hash_file
from repro_image.adapters.web import Page, Web, safe_url
from repro_image.core.lockfile import LockedWheel
from repro_image.core.project import Settings
from repro_image.core.reference import is_digest
from repro_image.errors import (
    DownloadError,
    GoneError,
    NoHashError,
    NoWheelError,
    UnknownIndexError,
    WrongContentError,
)

INDEX = "index"  # the sources of this machine's pip configuration
_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"


class IndexFile(msgspec.Struct, frozen=True, kw_only=True):
    """One wheel of one source.

    address:   URL, or path of a local file.
    sha256:    as the source gives it, else None.
    metadata:  what the source says of its separate metadata file: ``sha256=…`` or ``true``; else None.
    """

    filename: str
    project: str
    version: Version
    address: str
    sha256: str | None = None
    size_bytes: int | None = None
    is_yanked: bool = False
    metadata: str | None = None


def open_package_index(settings: Settings) -> "PackageIndex":
    """Return the sources of this machine's pip configuration and of the project's settings.

    Raises: PipConfigurationError.
    """
    return PackageIndex(open_web(settings), indexes=settings.indexes)


def open_web(settings: Settings) -> Web:
    """Return HTTP as this machine's pip and the project are set up for it. Raises: PipConfigurationError."""
    return Web(read_pip_settings(ca=settings.ca))


class PackageIndex:
    """All sources of wheels. Safe to use from several threads; pages are read once.

    indexes: name -> address, from [tool.repro-image.indexes].
    """

    def __init__(self, web: Web, *, indexes: Mapping[str, str]) -> None:
        self.web, self._indexes = web, indexes
        self._links: tuple[IndexFile, ...] | None = None
        self._pages: dict[tuple[str, str], tuple[IndexFile, ...]] = {}
        self._lock = threading.Lock()

    def choose(self, project: str, version: str, *, tags: Sequence[str], source: str = INDEX) -> LockedWheel:
        """Return the wheel of this version that suits the interpreter best, with its hash.

        tags:   tags that the interpreter accepts, best first.
        Raises: NoWheelError, NoHashError, DownloadError, UnknownIndexError.
        """
        rank = {tag: position for position, tag in reversed(list(enumerate(tags)))}
        for files in self.groups(project, source=source):
            fitting = [file for file in files if file.version == Version(version) and _ranks(file, rank)]
            if fitting:
                return self._lock_wheel(
                    min(fitting, key=lambda file: _preference(file, rank)), version, source
                )
        raise NoWheelError(
            f"{project} {version}",
            source=source,
            fix="pin another version in requirements/<image>.in, or configure pip with a source that has it",
        )

    def addresses(self, wheel: LockedWheel) -> Iterator[str]:
        """Yield where the locked wheel may be had, one source after the other.

        Raises: WrongContentError with both hashes when only another file of its name is there; DownloadError
            when it is gone.
        """
        others: list[str] = []
        is_found = False
        for files in self.groups(wheel.name, source=wheel.source):
            for file in files:
                if file.filename == wheel.filename and file.sha256 in (None, wheel.sha256):
                    is_found = True
                    yield file.address
                elif file.filename == wheel.filename and file.sha256:
                    others.append(file.sha256)
        name = f"{wheel.name} {wheel.version}"
        if others and not is_found:
            raise WrongContentError(
                name, expected=wheel.sha256, found=others[0], where=f"source {wheel.source}"
            )
        if not is_found:
            raise GoneError(
                name,
                reason=f"{wheel.filename} is in no source any more",
                where=f"source {wheel.source}",
                fix=f"put it into pip's find-links, or lock again: `repro-image lock -P {wheel.name}`",
            )

    def groups(self, project: str, *, source: str = INDEX) -> Iterator[tuple[IndexFile, ...]]:
        """Yield the project's wheels source by source; a source is asked when its turn comes."""
        yield self.linked(project)
        for index in self._addresses(source):
            yield self._project_page(index, project)

    def linked(self, project: str) -> tuple[IndexFile, ...]:
        """Return the project's wheels in pip's find-links."""
        with self._lock:
            if self._links is None:
                links = self.web.settings.find_links
                self._links = tuple(file for link in links for file in self._read_links(link))
        return tuple(file for file in self._links if file.project == canonicalize_name(project))

    def has_linked(self, project: str, wanted: SpecifierSet, *, tags: Sequence[str]) -> bool:
        """Tell whether find-links has a wheel of the project that fits the specifier and the interpreter."""
        rank = dict.fromkeys(tags, 0)
        return any(
            wanted.contains(file.version, prereleases=True) and _ranks(file, rank)
            for file in self.linked(project)
        )

    def _addresses(self, source: str) -> tuple[str, ...]:
        if source == INDEX:
            # Extra indexes first: a name taken on the public index must not shadow a private one.
            main, *extra = self.web.settings.indexes or ("",)
            return (*extra, main) if main else ()
        if source not in self._indexes:
            raise UnknownIndexError(source, known=tuple(self._indexes))
        return (self._indexes[source],)

    def _project_page(self, index: str, project: str) -> tuple[IndexFile, ...]:
        name = canonicalize_name(project)
        key = (index, name)
        if key not in self._pages:
            folder = local_path(index)
            if folder is not None:
                path = folder / name / "index.html"
                page = _local_page(path) if path.is_file() else None
            else:
                page = self.web.page(
                    f"{index.rstrip('/')}/{name}/", accept=_ACCEPT, name=f"the page of {name}"
                )
            files = parse_page(page) if page else ()
            self._pages[key] = tuple(file for file in files if file.project == name)
        return self._pages[key]

    def _read_links(self, link: str) -> tuple[IndexFile, ...]:
        path = local_path(link)
        if path is None:
            page = self.web.page(link, accept="text/html", name="a find-links page of pip")
            return parse_page(page) if page else ()
        if path.is_dir():
            found = (
                _index_file(file.name, str(file)) for file in sorted(path.iterdir()) if file.suffix == ".whl"
            )
            return tuple(file for file in found if file)
        return parse_page(_local_page(path)) if path.is_file() else ()

    def _lock_wheel(self, file: IndexFile, version: str, source: str) -> LockedWheel:
        path = local_path(file.address)
        digest, size = file.sha256, file.size_bytes
        if path is not None:
            if not path.is_file():
                raise DownloadError(
                    f"{file.project} {version}", reason="the file is not there", where=str(path)
                )
            digest, size = hash_file(path), path.stat().st_size
        if digest is None:
            raise NoHashError(file.filename, where=safe_url(file.address))
        if size is None:
            size = self.web.size_bytes(file.address, name=file.filename)
        return LockedWheel(
            name=file.project,
            version=version,
            sha256=digest,
            filename=file.filename,
            size_bytes=size,
            source=source,
        )


def parse_page(page: Page) -> tuple[IndexFile, ...]:
    """Return the wheels that a page of an index lists: JSON (PEP 691) or HTML (PEP 503).

    Raises: DownloadError when the page is neither.
    """
    try:
        text = page.body.decode()
        entries = _json_entries(text) if page.content_type == _JSON else _html_entries(text)
        files = [_page_file(entry, page) for entry in entries]
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        where = safe_url(page.url)
        raise DownloadError("an index page", reason=f"it is not readable ({error})", where=where) from error
    return tuple(file for file in files if file)


def local_wheels(settings: PipSettings) -> Iterator[IndexFile]:
    """Yield every wheel of the indexes that are folders of this machine."""
    for index in settings.indexes:
        folder = local_path(index)
        for path in sorted(folder.glob("*/index.html")) if folder is not None else ():
            yield from parse_page(_local_page(path))


def links_page(files: Iterable[IndexFile]) -> str:
    """Return an HTML page of the files, for a resolver's find-links."""
    from html import escape

    lines = []
    for file in files:
        metadata = f' data-core-metadata="{escape(file.metadata)}"' if file.metadata else ""
        digest = f"#{file.sha256.replace(':', '=')}" if file.sha256 else ""
        path = local_path(file.address)
        href = escape((path.as_uri() if path else file.address) + digest)
        lines.append(f'<a href="{href}"{metadata}>{escape(file.filename)}</a><br>\n')
    return "<!DOCTYPE html><html><body>\n" + "".join(lines) + "</body></html>\n"


def _local_page(path: Path) -> Page:
    return Page(url=path.absolute().as_uri(), content_type="text/html", body=path.read_bytes())


def _page_file(entry: Mapping[str, Any], page: Page) -> IndexFile | None:
    url, fragment = urldefrag(urljoin(page.url, entry["url"]))
    path = local_path(url) if urlsplit(page.url).scheme == "file" else None
    if path is None and urlsplit(url).scheme not in ("http", "https"):
        return None  # a page from the network may not point at files of this machine
    digest = entry.get("sha256") or (
        fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
    )
    digest = f"sha256:{digest.lower()}" if digest else None
    return _index_file(
        entry.get("filename") or unquote(urlsplit(url).path.rpartition("/")[2]),
        str(path) if path else url,
        sha256=digest if digest and is_digest(digest) else None,
        size_bytes=entry.get("size"),
        is_yanked=bool(entry.get("yanked")),
        metadata=entry.get("metadata"),
    )


def _index_file(filename: str, address: str, **fields: Any) -> IndexFile | None:
    """Return the file, or None for anything but a wheel with a valid name."""
    try:
        project, version, _, _ = parse_wheel_filename(filename)
    except (InvalidWheelFilename, InvalidVersion):
        return None
    return IndexFile(filename=filename, project=project, version=version, address=address, **fields)


def _json_entries(text: str) -> list[dict[str, Any]]:
    found = []
    for entry in json.loads(text)["files"]:
        metadata = entry.get("core-metadata", entry.get("dist-info-metadata"))
        if isinstance(metadata, dict):
            metadata = f"sha256={metadata['sha256']}" if "sha256" in metadata else "true"
        found.append(
            {
                "filename": str(entry["filename"]),
                "url": str(entry["url"]),
                "sha256": entry.get("hashes", {}).get("sha256"),
                "size": entry.get("size"),
                "yanked": entry.get("yanked", False) is not False,
                "metadata": ("true" if metadata is True else metadata) or None,
            }
        )
    return found


def _html_entries(text: str) -> list[dict[str, Any]]:
    parser = _Links()
    parser.feed(text)
    parser.close()
    return parser.entries


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.entries: list[dict[str, Any]] = []
        self._base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "base" and values.get("href"):
            self._base = values["href"] or ""
        if tag == "a" and values.get("href"):
            metadata = values.get("data-core-metadata", values.get("data-dist-info-metadata"))
            self.entries.append(
                {
                    "url": urljoin(self._base, values["href"] or ""),
                    "yanked": "data-yanked" in values,
                    "metadata": metadata if metadata not in ("", "false") else None,
                }
            )


def _ranks(file: IndexFile, rank: Mapping[str, int]) -> list[int]:
    tags = parse_wheel_filename(file.filename)[3]
    return [rank[str(tag)] for tag in tags if str(tag) in rank]


def _preference(file: IndexFile, rank: Mapping[str, int]) -> tuple[bool, int, int, str, str]:
    """Return a sort key, best first: not yanked, best tag, highest build number."""
    build = parse_wheel_filename(file.filename)[2]
    number, suffix = build or (0, "")
    return file.is_yanked, min(_ranks(file, rank)), -number, suffix, file.filename
