"""Which image a reference names, before anything runs."""

from types import SimpleNamespace
from typing import Any

import pytest

from repro_image.core.comparison import Comparison, Reason
from repro_image.core.ledger import StoredEpoch
from repro_image.core.reference import parse_reference
from repro_image.steps.verify import asked_name, resolve_image
from tests.ledger_samples import digest_of, sample_epoch

EPOCH = sample_epoch()
STORED = StoredEpoch(digest=digest_of("record"), path="x", epoch=EPOCH)
NAME, OWN = f"{EPOCH.repository}:{EPOCH.tag}", EPOCH.image.manifests[0].digest


def resolve(text: str) -> tuple[str | Comparison, list[str]]:
    """Return what ``text`` comes to where the engine has the epoch's image, and what the engine was asked."""
    asked: list[str] = []

    def image(name: str) -> Any:
        asked.append(name)
        return SimpleNamespace(id=OWN)

    adapters: Any = SimpleNamespace(engine=SimpleNamespace(image=image), reporter=None)
    return resolve_image(parse_reference(text), STORED, adapters), asked


@pytest.mark.parametrize("text", [NAME, f"{NAME}@{OWN}", f"{NAME}@{EPOCH.image.config}"])
def test_a_tag_is_asked_for_also_where_its_digest_stands_beside_it(text: str) -> None:
    assert resolve(text) == (OWN, [NAME])


def test_a_digest_alone_is_asked_for_as_the_engine_knows_it() -> None:
    assert resolve(EPOCH.image.config) == (OWN, [OWN])
    assert str(asked_name(parse_reference(OWN), STORED)) == OWN


def test_another_digest_beside_the_tag_is_a_moved_tag_and_nothing_is_asked() -> None:
    other = digest_of("another image")
    found, asked = resolve(f"{NAME}@{other}")
    assert isinstance(found, Comparison)
    assert (found.exit_code, found.reason) == (10, Reason.MOVED_TAG)
    assert found.images is not None
    assert (found.images.expected, found.images.found) == (EPOCH.image.config, other)
    assert asked == []
