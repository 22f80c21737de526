"""What a mirror image holds, and when a file is taken from there."""

from collections.abc import Iterator

import pytest

from repro_image.adapters.mirror_blobs import MirrorBlobs
from repro_image.adapters.pip_settings import PipSettings
from repro_image.adapters.registry_session import RegistrySession
from repro_image.adapters.web import Limits, Web
from repro_image.core.mirror import media_type_of
from repro_image.core.oci import MANIFESTS
from repro_image.errors import GoneError
from tests.ledger_samples import digest_of
from tests.unit.web_server import Server, serving, whole

BLOB = f"/v2/team/x-mirror/blobs/{digest_of('file')}"


@pytest.mark.parametrize(
    ("manifest", "media_type"),
    [(b"{}", MANIFESTS[0]), (f'{{"mediaType": "{MANIFESTS[1]}", "layers": []}}'.encode(), MANIFESTS[1])],
)
def test_a_base_is_loaded_as_what_its_manifest_says_to_be(manifest: bytes, media_type: str) -> None:
    assert media_type_of(manifest) == media_type


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def mirror(server: Server) -> MirrorBlobs:
    web = Web(PipSettings(timeout_s=0.5), limits=Limits(attempts=2, first_wait_s=0.01))
    return MirrorBlobs(lambda: RegistrySession("registry.test/team/x-mirror:any", server.base, web))


def gone() -> Iterator[str]:
    yield "https://index.test/file"
    raise GoneError("file", reason="it is in no source any more", where="source index", fix="lock again")


def test_the_mirror_is_asked_after_all_others(server: Server, mirror: MirrorBlobs) -> None:
    server.answers[BLOB] = [whole(b"file")]
    sources = mirror.after(gone, digest_of("file"))
    assert next(sources) == "https://index.test/file"
    assert server.requests == []
    assert list(sources) == [server.url(BLOB)]


def test_without_the_file_in_the_mirror_the_first_reason_counts(server: Server, mirror: MirrorBlobs) -> None:
    sources = mirror.after(gone, digest_of("file"))
    assert next(sources) == "https://index.test/file"
    with pytest.raises(GoneError, match="in no source any more"):
        next(sources)


def test_a_mirror_that_does_not_answer_hides_no_reason(server: Server, mirror: MirrorBlobs) -> None:
    server.base = "http://127.0.0.1:9"
    with pytest.raises(GoneError):
        list(mirror.after(gone, digest_of("file")))
    assert list(mirror.after(lambda: ["a", "b"], digest_of("file"))) == ["a", "b"]
