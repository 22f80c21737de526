"""A model hub on this machine: what the real client asks of one, for small planted repositories.

Large files are redirected to a server of their own, as hubs do, on another port and so another origin.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.unit.web_server import Answer, Server, ranged, serving, status

LARGE_BYTES = 1000
WEIGHTS = b"".join(n.to_bytes(2, "little") for n in range(20_000))
FILES: dict[str, bytes] = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "README.md": b"# Tiny\n",
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": json.dumps({"model": {"vocab": {f"t{n}": n for n in range(200)}}}).encode(),
    "tokenizer_config.json": b'{"chat_template": "{{ x }}"}',
}
_API = re.compile(r"/api/models/(?P<name>.+?)/(?P<what>revision|tree)/(?P<revision>[^/?]+)")
_RESOLVE = re.compile(r"/(?P<name>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - git's own name for a file


@dataclass
class Repository:
    """revisions: branch or tag -> commit; commits: commit -> path -> content. token: needed to read it."""

    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    is_gated: bool = False
    token: str | None = None


@dataclass
class Hub:
    """front: listings and small files; back: large ones. listing: changes each listing before it is sent.

    page:  entries on one page of a listing.
    wrong: path -> what is sent instead of the file.
    """

    front: Server
    back: Server
    repositories: dict[str, Repository] = field(default_factory=dict)
    listing: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda entries: entries
    page: int = 1000
    wrong: dict[str, bytes] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.front.base

    def commit(self, name: str, files: Mapping[str, bytes], *, branch: str = "main") -> str:
        """Plant a commit as the newest of a branch; return its identifier."""
        repository = self.repositories.setdefault(name, Repository())
        digests = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        commit = hashlib.sha1(json.dumps([name, digests]).encode()).hexdigest()  # noqa: S324 - as git has it
        repository.revisions[branch] = commit
        repository.commits[commit] = dict(files)
        return commit

    def asked(self, part: str) -> list[str]:
        """Return the paths of the requests so far that hold ``part``."""
        return [path for server in (self.front, self.back) for path, _ in server.requests if part in path]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        address = urlsplit(handler.path)
        api, resolve = _API.fullmatch(address.path), _RESOLVE.fullmatch(address.path)
        found = api or resolve
        repository = self.repositories.get(found["name"]) if found else None
        if found is None or repository is None:
            status(404, X_Error_Code="RepoNotFound")(handler)
            return
        is_known = handler.headers.get("Authorization") == f"Bearer {repository.token}"
        if repository.token and not is_known and not (repository.is_gated and api):
            code = "GatedRepo" if repository.is_gated else "RepoNotFound"
            status(401 if not handler.headers.get("Authorization") else 403, X_Error_Code=code)(handler)
            return
        revision = unquote(found["revision"])
        commit = repository.revisions.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            status(404, X_Error_Code="RevisionNotFound")(handler)
        elif resolve:
            self._resolve(handler, files, commit, unquote(resolve["path"]))
        elif found["what"] == "revision":
            _json(handler, {"id": found["name"], "sha": commit, "siblings": []})
        else:
            self._tree(handler, files, address.path, parse_qs(address.query))

    def _tree(
        self,
        handler: BaseHTTPRequestHandler,
        files: Mapping[str, bytes],
        path: str,
        query: dict[str, list[str]],
    ) -> None:
        entries = self.listing([_entry(name, data) for name, data in files.items()])
        first = int(query.get("cursor", ["0"])[0])
        is_more = first + self.page < len(entries)
        following = f'<{self.url}{path}?recursive=true&cursor={first + self.page}>; rel="next"'
        _json(handler, entries[first : first + self.page], **({"Link": following} if is_more else {}))

    def _resolve(
        self, handler: BaseHTTPRequestHandler, files: Mapping[str, bytes], commit: str, path: str
    ) -> None:
        if path not in files:
            status(404, X_Error_Code="EntryNotFound")(handler)
            return
        data, headers = files[path], {"X-Repo-Commit": commit}
        if not _is_large(path, data):
            sent = self.wrong.get(path, data)
            _send(handler, sent, headers | {"ETag": f'"{git_blob(sent)}"'})
            return
        sha256 = hashlib.sha256(data).hexdigest()
        self.back.answers.setdefault(f"/{sha256}?signature=secret", [ranged(self.wrong.get(path, data))])
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{sha256}"'}
        place = {"Location": f"{self.back.base}/{sha256}?signature=secret"}
        _send(handler, b"", headers | linked | place, code=302)

    def large(self, data: bytes, *answers: Answer) -> None:
        """Let the server of large files answer so to the requests for one of them, in turn."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.back.answers[f"/{sha256}?signature=secret"] = list(answers)


def _is_large(path: str, data: bytes) -> bool:
    return len(data) > LARGE_BYTES or path.endswith((".safetensors", ".bin"))


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_blob(data)}
    if _is_large(path, data):
        oid = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
        entry["xetHash"] = oid[::-1]
    return entry


def _json(handler: BaseHTTPRequestHandler, value: object, **headers: str) -> None:
    _send(handler, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


def _send(
    handler: BaseHTTPRequestHandler, data: bytes, headers: Mapping[str, str], *, code: int = 200
) -> None:
    handler.send_response(code)
    for key, value in headers.items():
        handler.send_header(key, value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(data)


@contextmanager
def configured_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """Yield a hub that the client of this process is configured for; it finds no token of this machine's."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving() as front, serving() as back:
        hub = Hub(front, back)
        front.default = hub.answer
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub
