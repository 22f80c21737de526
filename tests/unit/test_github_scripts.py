"""What the scripts of .github/scripts make of documents; tests/integration runs them as the workflows do."""

import importlib
import json
from types import ModuleType

import pytest

from tests.scratch import REPOSITORY


def script(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    monkeypatch.syspath_prepend(REPOSITORY / ".github/scripts")
    return importlib.import_module(name)


def test_an_epoch_has_the_manifests_of_its_build_and_of_every_push(monkeypatch: pytest.MonkeyPatch) -> None:
    image = {"manifests": [{"digest": "sha256:built"}]}
    document = {
        "epoch": {"image_name": "a", "repository": "r/a", "tag": "e0001-x", "image": image},
        "pushes": [{"manifest": {"digest": "sha256:packed"}}],
    }
    assert script(monkeypatch, "results").epoch(document) == "a r/a e0001-x sha256:built sha256:packed"


@pytest.mark.parametrize(
    ("path", "document", "found"),
    [
        ("debian.json", {"packages": [{"name": "bash", "version": "5"}]}, {"bash": "5"}),
        ("model.json", {"repository": "team/model", "commit": "c0ffee"}, {"team/model": "c0ffee"}),
        ("model.json", {"source": {"name": "wheel", "version": "1.0"}}, {"wheel": "1.0"}),
        ("base.json", {"reference": "r/b:1", "manifest": "sha256:0", "packages": []}, {"r/b:1": "sha256:0"}),
        ("other.json", {"packages": [{"name": "bash", "version": "5"}]}, {}),
    ],
)
def test_every_kind_of_lock_tells_what_moved(
    monkeypatch: pytest.MonkeyPatch, path: str, document: object, found: dict[str, str]
) -> None:
    upgrades = script(monkeypatch, "upgrades")
    assert upgrades.versions(f"locks/a/{path}", json.dumps(document)) == found
    assert upgrades.versions(f"locks/a/{path}", "") == {}
