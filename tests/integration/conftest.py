"""What the integration tests share."""

from collections.abc import Iterator

import pytest

from repro_image.adapters.debian import make_root, resolve_debs
from repro_image.adapters.engine import Engine
from repro_image.adapters.pip_settings import read_pip_settings
from repro_image.adapters.store import Store, hash_file
from repro_image.adapters.web import Web
from repro_image.core.project import DebianBase, Settings
from repro_image.steps.fetch import fetch_debs

PYTHON = DebianBase(
    suite="bookworm",
    packages={
        "python3-minimal": "runs the supervisor",
        "libpython3.11-stdlib": "ctypes, through which the probe of GPUs asks NVIDIA's libraries",
    },
)


class Quiet:
    def line(self, text: str) -> None:
        print(text)

    def status(self, text: str) -> None:
        pass


@pytest.fixture(scope="session")
def image(store: Store) -> Iterator[str]:
    """The name of an image that holds Python and little else: some 50 MB."""
    with store.workspace() as folder:
        resolved = resolve_debs(PYTHON, settings=Settings(), workspace=folder)
        fetch_debs(
            resolved.packages,
            image="test",
            settings=Settings(),
            store=store,
            web=Web(read_pip_settings()),
            reporter=Quiet(),
        )
        debs = {deb: store.path(deb.sha256) for deb in resolved.packages}
        tar = make_root(debs, source_date_epoch=resolved.source_date_epoch, workspace=folder)
        name = Engine().ensure_root(hash_file(tar), tar, created_s=resolved.source_date_epoch)
    yield name
    Engine().untag(name)
