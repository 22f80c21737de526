"""What a registry may answer, and what becomes of it: a real HTTP server that can be told to misbehave."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repro_image.adapters.pip_settings import PipSettings
from repro_image.adapters.registry import ResolvedImage, resolve_image
from repro_image.adapters.web import Limits, Web
from repro_image.core.reference import sha256_digest
from repro_image.errors import (
    CredentialsError,
    DownloadError,
    NoPlatformError,
    NotInRegistryError,
    RegistryAccessError,
    RegistryAnswerError,
    ReproImageError,
)
from tests.unit.web_server import Answer, Server, endless, serving, status

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LIMITS = Limits(attempts=3, first_wait_s=0.01, longest_wait_s=0.2)
AMD64 = {"os": "linux", "architecture": "amd64"}
ARM64 = {"os": "linux", "architecture": "arm64"}


def text(value: object) -> bytes:
    return json.dumps(value).encode()


def descriptor(body: bytes, media_type: str, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": sha256_digest(body), "size": len(body), **more}


def document(body: bytes, media_type: str, **headers: str) -> Answer:
    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", media_type)
        for key, value in headers.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


PIP = PipSettings(timeout_s=0.5)


class Registry:
    """One image of two platforms at ``server``; tests change it before they ask for it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.config = text({**AMD64, "created": "2026-11-21T22:30:00Z", "rootfs": {}})
        self.manifest = text(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": descriptor(self.config, CONFIG),
                "layers": [],
            }
        )
        self.index = text(
            {
                "schemaVersion": 2,
                "mediaType": INDEX,
                "manifests": [
                    descriptor(b"other", MANIFEST, platform=ARM64),
                    descriptor(b"proof", MANIFEST, platform={"os": "unknown", "architecture": "unknown"}),
                    descriptor(b"fast", MANIFEST, platform={**AMD64, "variant": "v3"}),
                    descriptor(self.manifest, MANIFEST, platform=AMD64),
                ],
            }
        )
        self.put("manifests/13.0", self.index, INDEX)
        self.put(f"manifests/{sha256_digest(self.index)}", self.index, INDEX)
        self.put(f"manifests/{sha256_digest(self.manifest)}", self.manifest, MANIFEST)
        self.put(f"blobs/{sha256_digest(self.config)}", self.config, "application/octet-stream")

    def put(self, path: str, body: bytes, media_type: str) -> None:
        self.server.answers[f"/v2/team/base/{path}"] = [document(body, media_type)]

    def resolve(
        self, *, digest: str | None = None, mirrors: tuple[str, ...] = (), pip: PipSettings = PIP
    ) -> ResolvedImage:
        return resolve_image(
            "registry.test/team/base:13.0",
            platform="linux/amd64",
            addresses=(*mirrors, self.server.base),
            web=Web(pip, limits=LIMITS),
            digest=digest,
        )

    def refused(self, kind: type[ReproImageError]) -> str:
        with pytest.raises(kind) as caught:
            self.resolve()
        assert caught.value.exit_code == 5
        return str(caught.value)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with serving() as server:
        yield Registry(server)


def log_in(folder: Path, **more: object) -> None:
    auth = base64.b64encode(b"me:secret").decode()
    (folder / "config.json").write_text(json.dumps({"auths": {"registry.test": {"auth": auth}}, **more}))


def test_a_tag_is_resolved_to_index_manifest_and_configuration(registry: Registry) -> None:
    found = registry.resolve()
    assert found.index == sha256_digest(registry.index)
    assert found.manifest == sha256_digest(registry.manifest)
    assert found.config_id == sha256_digest(registry.config)
    assert found.config.created_s == 1795300200


def test_a_tag_of_one_manifest_has_no_index(registry: Registry) -> None:
    registry.put("manifests/13.0", registry.manifest, MANIFEST)
    found = registry.resolve()
    assert (found.index, found.manifest) == (None, sha256_digest(registry.manifest))


def test_a_kept_digest_is_asked_for_instead_of_the_tag(registry: Registry) -> None:
    registry.put("manifests/13.0", b"moved", MANIFEST)
    assert registry.resolve(digest=sha256_digest(registry.index)).index == sha256_digest(registry.index)


def test_bytes_with_another_digest_than_asked_for_are_refused(registry: Registry) -> None:
    registry.put(f"manifests/{sha256_digest(registry.manifest)}", registry.manifest + b" ", MANIFEST)
    told = registry.refused(RegistryAnswerError)
    assert sha256_digest(registry.manifest) in told
    assert sha256_digest(registry.manifest + b" ") in told


def test_bytes_with_another_digest_than_the_registry_promises_are_refused(registry: Registry) -> None:
    other = sha256_digest(b"other")
    registry.server.answers["/v2/team/base/manifests/13.0"] = [
        document(registry.index, INDEX, Docker_Content_Digest=other)
    ]
    assert other in registry.refused(RegistryAnswerError)


def test_an_index_that_calls_itself_a_manifest_is_refused(registry: Registry) -> None:
    registry.put("manifests/13.0", registry.index, MANIFEST)
    assert f"it says to be {INDEX!r} and came as {MANIFEST!r}" in registry.refused(RegistryAnswerError)


def test_a_document_that_can_be_read_in_two_ways_is_refused(registry: Registry) -> None:
    both = text({**json.loads(registry.index), **json.loads(registry.manifest), "mediaType": MANIFEST})
    registry.put("manifests/13.0", both, MANIFEST)
    assert "it can be read as a manifest and as an index" in registry.refused(RegistryAnswerError)


@pytest.mark.parametrize(
    ("body", "media_type", "reason"),
    [
        (b"<html>", MANIFEST, "it is no image manifest"),
        (b"[" * 100_000, MANIFEST, "it is no image manifest"),
        (b"{}", "text/html", "'text/html' is no image manifest or index"),
        (b"{}", MANIFEST, "it is no image manifest: Object missing required field `config`"),
        (
            text({"config": {"mediaType": CONFIG, "digest": "sha256:../..", "size": 1}, "layers": []}),
            MANIFEST,
            "`$.config.digest`",
        ),
    ],
)
def test_what_is_no_manifest_is_refused(
    registry: Registry, body: bytes, media_type: str, reason: str
) -> None:
    registry.put("manifests/13.0", body, media_type)
    assert reason in registry.refused(RegistryAnswerError)


def test_an_index_in_an_index_is_refused(registry: Registry) -> None:
    outer = text({"manifests": [descriptor(registry.index, INDEX, platform=AMD64)]})
    registry.put("manifests/13.0", outer, INDEX)
    assert "the index names another index" in registry.refused(RegistryAnswerError)


def test_a_body_without_end_is_given_up(registry: Registry) -> None:
    registry.server.answers["/v2/team/base/manifests/13.0"] = [endless()]
    assert "it is larger than 4,194,304 bytes" in registry.refused(RegistryAnswerError)


def test_a_configuration_longer_than_its_descriptor_says_is_refused(registry: Registry) -> None:
    registry.put(f"blobs/{sha256_digest(registry.config)}", registry.config + b" ", CONFIG)
    assert f"it is larger than {len(registry.config)} bytes" in registry.refused(RegistryAnswerError)


def test_a_platform_that_the_image_lacks_is_told_with_those_that_it_has(registry: Registry) -> None:
    other = descriptor(b"other", MANIFEST, platform=ARM64)
    registry.put("manifests/13.0", text({"manifests": [other]}), INDEX)
    assert (
        "there is no linux/amd64 in registry.test/team/base:13.0 (there is: linux/arm64)"
        in registry.refused(NoPlatformError)
    )


def test_a_manifest_whose_configuration_is_of_another_platform_is_refused(registry: Registry) -> None:
    config = text(ARM64)
    body = text({"config": descriptor(config, CONFIG), "layers": []})
    registry.put("manifests/13.0", body, MANIFEST)
    registry.put(f"blobs/{sha256_digest(config)}", config, CONFIG)
    assert "there is: linux/arm64" in registry.refused(NoPlatformError)


def test_a_tag_and_a_repository_that_are_missing_are_told_apart(registry: Registry) -> None:
    registry.server.answers["/v2/team/base/manifests/13.0"] = [status(404)]
    assert "the repository is not there" in registry.refused(NotInRegistryError)
    registry.server.answers["/v2/team/base/tags/list?n=1"] = [document(b"{}", "application/json")]
    assert "the tag '13.0' is not there" in registry.refused(NotInRegistryError)


def test_a_manifest_that_only_the_index_has_is_named(registry: Registry) -> None:
    digest = sha256_digest(registry.manifest)
    del registry.server.answers[f"/v2/team/base/manifests/{digest}"]
    assert f"{digest}, which the tag names, is not there" in registry.refused(NotInRegistryError)


def test_no_credentials_and_no_rights_are_told_apart(registry: Registry) -> None:
    registry.server.answers["/v2/team/base/manifests/13.0"] = [status(401, WWW_Authenticate="Basic realm=x")]
    told = registry.refused(RegistryAccessError)
    assert "the registry asks for credentials (401): registry.test/team/base:13.0" in told
    assert "docker login registry.test" in told
    registry.server.answers["/v2/team/base/manifests/13.0"] = [status(403)]
    assert "the registry refuses access (403)" in registry.refused(RegistryAccessError)


def bearer(server: Server, **headers: str) -> Answer:
    return status(401, WWW_Authenticate=f'Bearer realm="{server.url("/token")}",service="a,b"', **headers)


TOKEN_PATH = "/token?service=a%2Cb&scope=repository%3Ateam%2Fbase%3Apull"


def test_an_anonymous_token_is_fetched_where_the_registry_wants_one(registry: Registry) -> None:
    server, path = registry.server, "/v2/team/base/manifests/13.0"
    server.answers[path] = [bearer(server), *server.answers[path]]
    server.answers[TOKEN_PATH] = [document(text({"token": "t0"}), "application/json")]
    registry.resolve()
    sent = [(path, headers.get("authorization")) for path, headers in server.requests]
    assert sent[:3] == [(path, None), (TOKEN_PATH, None), (path, "Bearer t0")]
    assert {authorization for _, authorization in sent[3:]} == {"Bearer t0"}


def test_the_credentials_of_docker_login_go_to_the_token_server_alone(
    registry: Registry, tmp_path: Path
) -> None:
    log_in(tmp_path)
    server, path = registry.server, "/v2/team/base/manifests/13.0"
    server.answers[path] = [bearer(server), *server.answers[path]]
    server.answers[TOKEN_PATH] = [document(text({"access_token": "t1"}), "application/json")]
    registry.resolve()
    basic = "Basic " + base64.b64encode(b"me:secret").decode()
    assert server.headers("Authorization") == [None, basic, "Bearer t1", "Bearer t1", "Bearer t1"]


def test_credentials_do_not_follow_a_redirect_to_another_server(registry: Registry, tmp_path: Path) -> None:
    log_in(tmp_path)
    server, blob = registry.server, f"/v2/team/base/blobs/{sha256_digest(registry.config)}"
    path = "/v2/team/base/manifests/13.0"
    server.answers[path] = [status(401, WWW_Authenticate="Basic realm=x"), *server.answers[path]]
    with serving() as elsewhere:
        elsewhere.answers["/config"] = server.answers[blob]
        server.answers[blob] = [status(307, Location=elsewhere.url("/config"))]
        registry.resolve()
        assert elsewhere.headers("Authorization") == [None]
    assert server.headers("Authorization")[-1] is not None


def test_a_token_server_that_refuses_is_no_access(registry: Registry) -> None:
    server = registry.server
    server.answers["/v2/team/base/manifests/13.0"] = [bearer(server)]
    server.answers[TOKEN_PATH] = [status(401)]
    assert "asks for credentials (401)" in registry.refused(RegistryAccessError)


def test_a_realm_that_is_no_web_address_is_refused(registry: Registry) -> None:
    challenge = 'Bearer realm="file:///etc/passwd"'
    registry.server.answers["/v2/team/base/manifests/13.0"] = [status(401, WWW_Authenticate=challenge)]
    assert "it names no address to get a token from" in registry.refused(RegistryAnswerError)


def test_a_credential_helper_that_fails_is_told(registry: Registry, tmp_path: Path) -> None:
    log_in(tmp_path, credHelpers={"registry.test": "no-such-helper"})
    server = registry.server
    server.answers["/v2/team/base/manifests/13.0"] = [bearer(server)]
    told = registry.refused(CredentialsError)
    assert "the docker configuration gives no credentials for registry.test" in told


def test_a_busy_registry_is_asked_again_but_not_for_ever(registry: Registry) -> None:
    path = "/v2/team/base/manifests/13.0"
    answer = registry.server.answers[path][0]
    registry.server.answers[path] = [status(429, Retry_After="0"), status(503), answer]
    registry.resolve()
    registry.server.answers[path] = [status(429, Retry_After="0")]
    assert "the server answers 429, 3 times" in registry.refused(DownloadError)


def test_a_server_name_that_is_not_known_is_told(registry: Registry) -> None:
    registry.server.base = "http://no-such-host.invalid"
    assert "the name of the server no-such-host.invalid is not known" in registry.refused(DownloadError)


def test_the_registry_is_asked_when_a_mirror_is_down_or_lacks_the_image(registry: Registry) -> None:
    with serving() as empty:
        found = registry.resolve(mirrors=("http://127.0.0.1:9", empty.base))
        assert len(empty.requests) == 2
    assert found.manifest == sha256_digest(registry.manifest)


def test_a_short_name_of_docker_hub_is_looked_up_in_its_library(registry: Registry) -> None:
    server = registry.server
    server.answers = {path.replace("team/base", "library/debian"): a for path, a in server.answers.items()}
    found = resolve_image(
        "docker.io/debian:13.0",
        platform="linux/amd64",
        addresses=(server.base,),
        web=Web(PipSettings(timeout_s=0.5), limits=LIMITS),
    )
    assert found.manifest == sha256_digest(registry.manifest)


def test_pips_login_at_the_same_host_is_not_the_registrys(registry: Registry, tmp_path: Path) -> None:
    log_in(tmp_path)
    server, path = registry.server, "/v2/team/base/manifests/13.0"
    address = server.url("/pypi/simple").replace("http://", "http://pip:other@")
    server.answers[path] = [bearer(server), *server.answers[path]]
    server.answers[TOKEN_PATH] = [document(text({"access_token": "t1"}), "application/json")]
    registry.resolve(pip=PipSettings(index_url=address, timeout_s=0.5))
    basic = "Basic " + base64.b64encode(b"me:secret").decode()
    assert server.headers("Authorization") == [None, basic, "Bearer t1", "Bearer t1", "Bearer t1"]
