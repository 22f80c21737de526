"""One real epoch of suite smoke that the tests of this folder share; figures are printed at the end."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from repro_image.adapters.store import Store
from tests.e2e.conftest import Recorded, scratch  # noqa: F401 - a fixture, which sees to fetchable locks
from tests.scratch import IMAGE, Scratch, docker

_REPOSITORY = "repro-image-soak"
_FIGURES = pytest.StashKey[dict[str, Any]]()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> dict[str, Any]:
    """Name -> what was measured; printed when the session ends."""
    return pytestconfig.stash.setdefault(_FIGURES, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(_FIGURES, {})
    if figures:
        terminalreporter.write_line(json.dumps(figures, indent=2))
        for name, figure in figures.items():
            terminalreporter.write_line(f"| {name} | {figure} |")


@pytest.fixture(scope="session")
def smoke(
    scratch: Scratch,  # noqa: F811 - the imported fixture
    tmp_path_factory: pytest.TempPathFactory,
    store: Store,
    figures: dict[str, Any],
) -> Iterator[Recorded]:
    """Epoch 1 with the suite that the image ships with, recorded from the committed locks."""
    project = Scratch(tmp_path_factory.mktemp("soak"), store.root)
    settings = project.folder / "pyproject.toml"
    settings.write_text(
        settings.read_text().replace('repository = "repro-image"', f'repository = "{_REPOSITORY}"')
    )
    made = project.run("build", IMAGE, "--no-golden")
    assert made.code == 0, made.err
    recorded = project.run("build", IMAGE, "--json")
    assert recorded.code == 0, recorded.err
    figures["recording an epoch of suite smoke, s"] = round(recorded.seconds, 1)
    fields = recorded.json[0]
    yield Recorded(project, recorded, fields["reference"], fields["config"])
    listed = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"{_REPOSITORY}/*")
    for reference in listed.split():
        docker("image", "rm", "--force", reference)
