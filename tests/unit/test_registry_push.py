"""What a registry may answer to what is sent to it: a real HTTP server that can be told to misbehave."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repro_image.adapters.pip_settings import PipSettings
from repro_image.adapters.registry_push import Blob, push_blob, push_document
from repro_image.adapters.registry_session import RegistrySession
from repro_image.adapters.web import Limits, Web
from repro_image.core.oci import MANIFESTS
from repro_image.core.reference import sha256_digest
from repro_image.errors import PushError, RegistryAccessError, RegistryAnswerError
from tests.unit.web_server import Answer, Server, serving, status, whole

DATA = b"layer" * 1000
DIGEST = sha256_digest(DATA)
HEAD, BEGIN = f"/v2/team/x/blobs/{DIGEST}", "/v2/team/x/blobs/uploads/"
PUT = f"/v2/team/x/blobs/uploads/1?state=2&digest={DIGEST}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A registry that lacks the blob and takes it."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with serving() as server:
        server.answers[BEGIN] = [status(202, Location="/v2/team/x/blobs/uploads/1?state=2")]
        server.answers[PUT] = [status(201)]
        yield server


@pytest.fixture
def blob(tmp_path: Path) -> Blob:
    (tmp_path / "layer").write_bytes(DATA)
    return Blob(DIGEST, len(DATA), tmp_path / "layer")


def session(server: Server) -> RegistrySession:
    web = Web(PipSettings(timeout_s=0.5), limits=Limits(attempts=3, first_wait_s=0.01, longest_wait_s=0.2))
    return RegistrySession("registry.test/team/x:e0001", server.base, web, actions="pull,push")


def refused(code: int, text: str) -> Answer:
    def answer(handler: Any) -> None:
        body = json.dumps({"errors": [{"code": "DENIED", "message": text}]}).encode()
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_a_blob_is_sent_once_and_counted(server: Server, blob: Blob) -> None:
    counted: list[int] = []
    assert push_blob(session(server), blob, on_bytes=counted.append)
    assert sum(counted) == len(DATA)
    assert [path for path, _ in server.requests] == [HEAD, BEGIN, PUT]
    assert server.requests[-1][1]["content-length"] == str(len(DATA))


def test_a_blob_that_is_there_is_not_sent(server: Server, blob: Blob) -> None:
    server.answers[HEAD] = [whole(DATA)]
    assert not push_blob(session(server), blob, on_bytes=lambda _: None)
    assert [path for path, _ in server.requests] == [HEAD]


def test_a_busy_registry_is_asked_again_from_the_first_byte_but_not_for_ever(
    server: Server, blob: Blob
) -> None:
    counted: list[int] = []
    server.answers[PUT] = [status(503), status(500), status(201)]
    assert push_blob(session(server), blob, on_bytes=counted.append)
    assert sum(counted) == len(DATA)
    assert [path for path, _ in server.requests].count(BEGIN) == 3
    server.answers[PUT] = [status(500)]
    with pytest.raises(PushError, match="the server answers 500, 3 times"):
        push_blob(session(server), blob, on_bytes=lambda _: None)


@pytest.mark.parametrize(("code", "text"), [(413, "too large"), (507, "quota"), (400, "digest invalid")])
def test_a_registry_that_refuses_is_quoted_and_not_asked_again(
    server: Server, blob: Blob, code: int, text: str
) -> None:
    server.answers[PUT] = [refused(code, text)]
    with pytest.raises(PushError, match=f"the registry answers {code}"):
        push_blob(session(server), blob, on_bytes=lambda _: None)
    assert [path for path, _ in server.requests].count(PUT) == 1


def test_the_registry_s_own_words_are_told(server: Server, blob: Blob) -> None:
    server.answers[BEGIN] = [refused(405, "this registry is read-only")]
    with pytest.raises(PushError) as caught:
        push_blob(session(server), blob, on_bytes=lambda _: None)
    assert "the registry answers 405 (DENIED: this registry is read-only)" in str(caught.value)


def test_who_may_not_push_is_told_so(server: Server, blob: Blob) -> None:
    server.answers[BEGIN] = [status(403)]
    with pytest.raises(RegistryAccessError):
        push_blob(session(server), blob, on_bytes=lambda _: None)


def test_layers_and_credentials_go_to_no_other_server(server: Server, blob: Blob) -> None:
    with serving() as elsewhere:
        server.answers[BEGIN] = [status(202, Location=elsewhere.url("/take"))]
        with pytest.raises(PushError, match="it wants the bytes at another server"):
            push_blob(session(server), blob, on_bytes=lambda _: None)
        assert elsewhere.requests == []
    server.answers[BEGIN] = [status(202, Location="/v2/team/x/blobs/uploads/1?state=2")]
    server.answers[PUT] = [status(307, Location="http://127.0.0.1:9/take")]
    with pytest.raises(PushError, match="the registry answers 307"):
        push_blob(session(server), blob, on_bytes=lambda _: None)


def test_a_token_that_runs_out_on_the_way_is_fetched_anew(server: Server, blob: Blob) -> None:
    challenge = status(401, WWW_Authenticate=f'Bearer realm="{server.url("/token")}",service="s"')
    token = "/token?service=s&scope=repository%3Ateam%2Fx%3Apull%2Cpush"
    server.answers[HEAD] = [challenge, status(404)]
    server.answers[PUT] = [challenge, status(201)]
    server.answers[token] = [whole(b'{"token": "t1"}'), whole(b'{"token": "t2"}')]
    assert push_blob(session(server), blob, on_bytes=lambda _: None)
    sent = {path: headers.get("authorization") for path, headers in server.requests}
    assert (sent[BEGIN], sent[PUT]) == ("Bearer t1", "Bearer t2")


def test_a_manifest_is_stored_and_read_back(server: Server) -> None:
    server.answers["/v2/team/x/manifests/e0001"] = [status(201), whole(DATA)]
    assert push_document(session(server), DATA, media_type=MANIFESTS[0], name="e0001") == DIGEST
    assert [headers.get("content-type") for _, headers in server.requests] == [MANIFESTS[0], None]


@pytest.mark.parametrize("other", [b"other" * 1000, b"short"])
def test_a_manifest_that_comes_back_otherwise_is_refused(server: Server, other: bytes) -> None:
    server.answers["/v2/team/x/manifests/e0001"] = [status(201), whole(other)]
    with pytest.raises((PushError, RegistryAnswerError)):
        push_document(session(server), DATA, media_type=MANIFESTS[0], name="e0001")
