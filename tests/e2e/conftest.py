"""One real epoch that the tests of this folder share: recorded once a session with the suite ``tiny``."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from repro_image.adapters.store import Store
from tests.scratch import IMAGE, Run, Scratch, docker

pytestmark = pytest.mark.e2e


@dataclass(frozen=True, slots=True)
class Recorded:
    """A project whose image has epoch 1. reference: repository and tag; config: digest of the image."""

    scratch: Scratch
    build: Run
    reference: str
    config: str

    @property
    def tag(self) -> str:
        return self.reference.rpartition(":")[2]


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Scratch:
    """The project with suite tiny and a repository of its own, so that no other epoch's tag is touched."""
    locks = Scratch(tmp_path_factory.mktemp("locks"), store.root)
    fetched = locks.run("fetch", IMAGE)
    if "is gone from the mirror" in fetched.err:
        # A mirror drops a .deb as soon as a newer one is out; the tests then run on locks of today.
        assert locks.run("lock", IMAGE, "--upgrade").code == 0
        Scratch.source = locks.folder
    project = Scratch(tmp_path_factory.mktemp("project"), store.root)
    project.change_image('suite = "smoke"', 'suite = "tiny"')
    settings = project.folder / "pyproject.toml"
    text = settings.read_text()
    settings.write_text(text.replace('repository = "repro-image"', 'repository = "repro-image-test"'))
    return project


@pytest.fixture(scope="session")
def epoch(scratch: Scratch) -> Iterator[Recorded]:
    """Epoch 1: the image built from the committed locks, its golden run twice in two containers."""
    build = scratch.run("build", IMAGE, "--json")
    assert build.code == 0, build.err
    fields = build.json[0]
    assert fields["did"] == "recorded"
    yield Recorded(scratch, build, fields["reference"], fields["config"])
    for reference in docker(
        "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "repro-image-test/*"
    ).split():
        docker("image", "rm", "--force", reference)
