"""One real epoch of vllm-cuda on this machine's GPU, which the tests of this folder share."""

from collections.abc import Iterator

import pytest

from repro_image.adapters.host import read_host
from repro_image.adapters.store import Store
from tests.e2e.conftest import Recorded
from tests.scratch import Scratch, docker

IMAGE = "vllm-cuda"
REPOSITORY = "repro-image-test"


@pytest.fixture(scope="session")
def gpu() -> str:
    """The name of the first GPU. Skips where there is none: a golden run on CUDA cannot be imitated."""
    host = read_host()
    if not host.gpus:
        pytest.skip("this machine has no NVIDIA GPU that its driver shows")
    return host.gpus[0].name


def cuda_project(folder: pytest.TempPathFactory, store: Store, name: str) -> Scratch:
    """Return the project with suite smoke and a repository of its own."""
    project = Scratch(folder.mktemp(name), store.root, IMAGE)
    project.change_image('suite = "full"', 'suite = "smoke"')
    settings = project.folder / "pyproject.toml"
    settings.write_text(
        settings.read_text().replace('repository = "repro-image"', f'repository = "{REPOSITORY}"')
    )
    return project


@pytest.fixture(scope="session")
def epoch(gpu: str, tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[Recorded]:
    """Epoch 1: the image built from the committed locks, its golden run twice in two containers."""
    project = cuda_project(tmp_path_factory, store, "cuda")
    build = project.run("build", IMAGE, "--json", timeout_s=3600)
    assert build.code == 0, build.err
    fields = build.json[0]
    assert fields["did"] == "recorded"
    yield Recorded(project, build, fields["reference"], fields["config"])
    docker("image", "rm", "--force", fields["reference"])
