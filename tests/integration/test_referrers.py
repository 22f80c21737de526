"""Documents beside an image in a real registry server, which keeps no list of them, and in one that does."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from repro_image.adapters.pip_settings import PipSettings
from repro_image.adapters.referrers import Attachment, Subject, attach, referrers
from repro_image.adapters.registry_session import Answer, Body, RegistrySession
from repro_image.adapters.store import Store
from repro_image.adapters.web import Web
from repro_image.core.oci import DOCUMENT_LIMIT_BYTES, INDEXES
from repro_image.core.reference import sha256_digest
from tests.registry import Registry, running_registry

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

REPOSITORY = "team/image"
BILL = Attachment(media_type="application/vnd.cyclonedx+json", data=b'{"a": 1}', title="bill.cdx.json")


@pytest.fixture
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


def session_of(registry: Registry, kind: type[RegistrySession] = RegistrySession) -> RegistrySession:
    reference = f"{registry.host}/{REPOSITORY}:tag"
    return kind(reference, f"http://{registry.host}", Web(PipSettings()), actions="pull,push")


@pytest.fixture
def subject(registry: Registry) -> Subject:
    """A manifest under a tag: what an attachment must not change."""
    fields = {"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": []}
    digest = registry.put(f"{REPOSITORY}:tag", fields)
    return Subject(media_type=INDEXES[0], digest=digest, size=len(registry.get(f"{REPOSITORY}:tag")))


def test_a_document_is_found_beside_the_image_which_stays_as_it_was(
    registry: Registry, subject: Subject, tmp_path: Path
) -> None:
    session = session_of(registry)
    digest = attach(session, subject, BILL, store=Store(tmp_path))
    [found] = referrers(session, subject.digest)
    assert (found["digest"], found["artifactType"]) == (digest, BILL.media_type)
    manifest = json.loads(session.get("manifests", digest, limit_bytes=DOCUMENT_LIMIT_BYTES)[0])
    assert manifest["subject"]["digest"] == subject.digest
    content = session.get("blobs", manifest["layers"][0]["digest"], limit_bytes=DOCUMENT_LIMIT_BYTES)[0]
    assert content == BILL.data
    assert sha256_digest(registry.get(f"{REPOSITORY}:tag")) == subject.digest


def test_attaching_again_changes_nothing_and_a_second_document_joins_the_first(
    registry: Registry, subject: Subject, tmp_path: Path
) -> None:
    session = session_of(registry)
    first = attach(session, subject, BILL, store=Store(tmp_path))
    assert attach(session, subject, BILL, store=Store(tmp_path)) == first
    other = Attachment(media_type="application/spdx+json", data=b"{}", title="bill.spdx.json")
    second = attach(session, subject, other, store=Store(tmp_path))
    assert [found["digest"] for found in referrers(session, subject.digest)] == [first, second]


def test_an_image_without_documents_has_none(registry: Registry, subject: Subject) -> None:
    assert referrers(session_of(registry), subject.digest) == ()


class WithList(RegistrySession):
    """The same registry, as if it kept the list of the OCI specification 1.1."""

    def patiently(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        limit_bytes: int = DOCUMENT_LIMIT_BYTES,
    ) -> Answer:
        if "/referrers/" in url:
            listed: dict[str, Any] = {"manifests": [{"digest": "sha256:" + "1" * 64}]}
            headers = {"content-type": INDEXES[0]}
            return Answer(status=200, body=json.dumps(listed).encode(), headers=headers)
        return super().patiently(method, url, headers=headers, body=body, limit_bytes=limit_bytes)


def test_a_registry_that_keeps_the_list_gets_no_second_one(
    registry: Registry, subject: Subject, tmp_path: Path
) -> None:
    session = session_of(registry, WithList)
    attach(session, subject, BILL, store=Store(tmp_path))
    assert [found["digest"] for found in referrers(session, subject.digest)] == ["sha256:" + "1" * 64]
    assert referrers(session_of(registry), subject.digest) == ()
