"""A model hub, asked through its own client: what a revision means, which files it has, where to get them.

The client resolves and lists, with the user's HF_ENDPOINT and token. Files do not come through it: it
compares their size only and keeps them in a cache of its own, while `downloads` checks every byte on its way
into the store.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from repro_image.adapters.web import Web, safe_url
from repro_image.core.project import is_commit
from repro_image.core.reference import is_digest, sha256_digest
from repro_image.errors import (
    DownloadError,
    HubAccessError,
    NoHubModelError,
    NoHubRevisionError,
    RefusedError,
    UnsafeModelError,
)

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

_MOST_FILES = 10_000
_MOST_REQUESTS = 50  # of one listing; a page holds 1,000 files
_KEPT_HEADERS = ("Content-Type", "Link", "X-Error-Code", "X-Error-Message")


class HubFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a commit. sha256: of a large file; None where the hub gives only the git blob."""

    path: str
    size_bytes: int
    sha256: str | None
    blob: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One commit of a repository. files: path -> file."""

    repository: str
    commit: str
    files: dict[str, HubFile]


class ModelHub:
    """The hub that this user's client is configured for: that of HF_ENDPOINT, else the public one.

    Raises: DownloadError where the user has turned the hub off; RefusedError for a token that is none.
    """

    def __init__(self, web: Web) -> None:
        from huggingface_hub import HfApi, constants, set_client_factory

        self._web, self._endpoint = web, constants.ENDPOINT
        if constants.is_offline_mode():
            raise DownloadError(
                "the model",
                reason="the model hub is turned off on this machine",
                where="HF_HUB_OFFLINE",
                fix="unset HF_HUB_OFFLINE and run this again",
            )
        if token := _token():
            web.authorize(self._endpoint, token)
        set_client_factory(lambda: _client(web))
        self._api = HfApi(token=False)  # `web` adds the token

    def snapshot(self, repository: str, revision: str) -> Snapshot:
        """Return the commit that the revision means now, and its files.

        Raises: NoHubModelError, NoHubRevisionError, HubAccessError, RateLimitError, DownloadError;
            UnsafeModelError for a listing that cannot be one of a model.
        """
        with self._client_errors(repository, revision):
            commit = str(self._api.model_info(repository, revision=revision).sha)
        if not is_commit(commit) or (is_commit(revision) and commit != revision):
            raise self._not_understood(repository, f"it names the commit {commit[:50]!r} for {revision}")
        files: dict[str, HubFile] = {}
        for file in self._list(repository, commit):
            if file.path in files:
                raise self._not_understood(repository, f"it lists {file.path[:100]!r} a second time")
            files[file.path] = file
        return Snapshot(repository=repository, commit=commit, files=files)

    def read(self, snapshot: Snapshot, path: str) -> bytes:
        """Return the content of a small file, after it was compared with what the listing says of it.

        Raises: DownloadError, HubAccessError.
        """
        file, name = snapshot.files[path], f"{path} of {snapshot.repository}"
        url = self.address(snapshot.repository, snapshot.commit, path)
        try:
            page = self._web.page(url, accept="*/*", name=name)
        except RefusedError as error:
            raise HubAccessError(snapshot.repository) from error
        if page is None:
            raise self._not_understood(name, "it lists the file and does not have it")
        found = _git_blob(page.body) if file.sha256 is None else sha256_digest(page.body)
        if len(page.body) != file.size_bytes or found != (file.sha256 or file.blob):
            raise self._not_understood(name, f"it sent {found}, and lists {file.sha256 or file.blob}")
        return page.body

    def address(self, repository: str, commit: str, path: str) -> str:
        """Return where the hub has a file of a commit."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(repository, path, revision=commit)

    def _list(self, repository: str, commit: str) -> Iterator[HubFile]:
        with self._client_errors(repository, commit):
            entries = list(islice(_entries(self._api, repository, commit), _MOST_FILES + 1))
            if len(entries) > _MOST_FILES:
                raise UnsafeModelError(repository, reason=f"it has more than {_MOST_FILES:,} files")
            yield from map(_hub_file, entries)

    @contextmanager
    def _client_errors(self, repository: str, revision: str) -> Iterator[None]:
        """Turn what the client raises into errors that say what to do."""
        from huggingface_hub import errors

        try:
            yield
        except errors.GatedRepoError as error:
            raise HubAccessError(repository) from error
        except errors.RevisionNotFoundError as error:
            raise NoHubRevisionError(repository, revision=revision) from error
        except errors.RepositoryNotFoundError as error:
            raise NoHubModelError(repository) from error
        except errors.HfHubHTTPError as error:
            raise self._answered(error.response.status_code, repository) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._not_understood(repository, f"{type(error).__name__} while reading it") from error

    def _answered(self, status: int, repository: str) -> Exception:
        if status in (401, 403):
            return HubAccessError(repository)
        if status == 404:
            return NoHubModelError(repository)
        return self._not_understood(repository, f"it answers {status}")

    def _not_understood(self, name: str, what: str) -> DownloadError:
        return DownloadError(
            name, reason=f"the hub is not understood: {what}", where=safe_url(self._endpoint)
        )


def _entries(api: "HfApi", repository: str, commit: str) -> "Iterator[RepoFile]":
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(repository, revision=commit, recursive=True)
    return (entry for entry in entries if isinstance(entry, RepoFile))


def _hub_file(entry: "RepoFile") -> HubFile:
    """Return an entry of a listing. Raises: ValueError, TypeError for what no hub would write."""
    sha256 = f"sha256:{entry.lfs.sha256}" if entry.lfs else None
    if not isinstance(entry.path, str) or not isinstance(entry.size, int):
        raise TypeError("a path or size of another type")
    if entry.size < 0 or not (is_digest(sha256) if sha256 else is_commit(entry.blob_id)):
        raise ValueError("neither sha256 nor git blob")
    if entry.lfs and entry.lfs.size != entry.size:
        raise ValueError("two sizes")
    return HubFile(path=entry.path, size_bytes=entry.size, sha256=sha256, blob=entry.blob_id)


def _git_blob(data: bytes) -> str:
    """Return the identifier that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data), usedforsecurity=False).hexdigest()


def _token() -> str | None:
    """Return the user's token, as the client finds it: HF_TOKEN, or the file that a login keeps."""
    import httpx2
    from huggingface_hub import constants, get_token, set_client_factory
    from huggingface_hub.errors import OIDCError

    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    where, fix = "HF_TOKEN, or the token file", "set HF_TOKEN to a token of the hub, or log in again"
    # A login by browser is renewed by a request of its own kind, not one for a listing.
    set_client_factory(lambda: httpx2.Client(follow_redirects=True))
    try:
        token = get_token() or ""
    except (OIDCError, OSError, ValueError) as error:
        reason = f"the token cannot be read: {type(error).__name__}"
        raise RefusedError("the model", reason=reason, where=where, fix=fix) from error
    if not token.isascii() or any(not character.isprintable() or character == " " for character in token):
        raise RefusedError(
            "the model", reason="the token has characters that no token has", where=where, fix=fix
        )
    return token or None


def _client(web: Web) -> "httpx2.Client":
    """Return what the hub's client speaks through: `web`, with its certificates, proxies and limits."""
    import httpx2

    class Transport(httpx2.BaseTransport):
        left = _MOST_REQUESTS

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            self.left -= 1
            url, name = str(request.url), "the model's listing"
            if self.left < 0:
                raise DownloadError(name, reason="it does not end", where=safe_url(url))
            return web.patiently(
                lambda: self.answer(url, request.headers["User-Agent"], name), url=url, name=name
            )

        def answer(self, url: str, agent: str, name: str) -> httpx2.Response:
            headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": agent}
            with web.request(url, headers=headers, name=name) as (response, _):
                web.require_ready(response)
                kept = {key: response.headers[key] for key in _KEPT_HEADERS if key in response.headers}
                return httpx2.Response(
                    response.status, headers=kept, content=web.body(response, url=url, name=name)
                )

    return httpx2.Client(transport=Transport(), trust_env=False, follow_redirects=True)
