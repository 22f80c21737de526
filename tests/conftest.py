"""What every test shares."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from repro_image.adapters.store import Store
from tests.composite import Runner
from tests.debian_packages import turkish
from tests.somebody import Somebody

# Seconds say more of what else the machine does than of this code; the examples themselves stay random.
settings.register_profile(
    "repro-image", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repro-image")

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="A skipped test fails the session.")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Let no test go unnoticed where everything that it needs is promised to be there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def store() -> Store:
    """A store that outlives the session, so that wheels and debs are downloaded once a machine."""
    folder = os.environ.get("REPRO_IMAGE_TEST_STORE")
    return Store(Path(folder) if folder else Path.home() / ".cache/repro-image-test")


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Variables of another country: its locale, compiled for this, and its clock."""
    return turkish(tmp_path_factory.mktemp("locale"))


@pytest.fixture
def somebody() -> Iterator[Somebody]:
    """Who is not root; pytest's own folders are root's alone, so their home lies beside them."""
    folder = Path(tempfile.mkdtemp(prefix="somebody-", dir="/tmp"))
    yield Somebody(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Runner:
    """Somebody's own machine that runs the composite action; its first call installs the tool."""
    environment = {"RUNNER_ENVIRONMENT": "self-hosted", "REPRO_IMAGE_STORE": str(store.root)}
    return Runner(tmp_path_factory.mktemp("runner"), environment)
