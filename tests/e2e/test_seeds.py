"""What vLLM's own seed does and does not do: the reason why every sampled prompt of a golden has its own."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from repro_image.adapters.engine import Engine, Mount
from repro_image.adapters.store import Store
from tests.changed_models import model_files
from tests.e2e.conftest import Recorded

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.docker,
    # The SDK leaves the socket of a connection that fails to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def seen(epoch: Recorded) -> dict[str, Any]:
    """What observe_seeds.py sees of five engines, in one container with the image's own settings."""
    golden = tomllib.loads(epoch.scratch.image_toml.read_text())["golden"]
    store = Store(epoch.scratch.store)
    files = model_files(epoch.scratch).items()
    result = Engine().run_tool(
        epoch.reference,
        ["python3", "/observe_seeds.py", "/model", json.dumps(golden["engine"])],
        mounts=[
            Mount(source=Path(__file__).with_name("observe_seeds.py"), target="/observe_seeds.py"),
            *(Mount(source=store.path(digest), target=f"/model/{path}") for path, digest in files),
        ],
        environment={"OMP_NUM_THREADS": str(golden["threads"]), "HOME": "/tmp"},
        user="1000:1000",
        timeout_s=300,
        options=["--shm-size", "1g"],
    )
    assert result.exit_code == 0, result.stderr
    engines: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return engines


def test_the_seed_is_0_unless_it_is_given(seen: dict[str, Any]) -> None:
    assert seen["default"]["seed"] == 0
    assert seen["default"] == seen["zero"]


def test_the_seed_cannot_be_unset(seen: dict[str, Any]) -> None:
    assert "seed" in seen["unset"]["refused"]
    assert "valid integer" in seen["unset"]["refused"]


@pytest.mark.parametrize(("engine", "seed"), [("default", "0"), ("zero", "0"), ("seven", "7")])
def test_it_seeds_python_numpy_and_torch_where_the_engine_runs(
    seen: dict[str, Any], engine: str, seed: str
) -> None:
    """Whatever the user had seeded them with: 123 for one engine, 456 for the other."""
    assert seen[engine]["draws"] == seen[engine]["draws_by_hand"][seed]


def test_an_engine_in_a_process_of_its_own_leaves_the_users_generators_alone(seen: dict[str, Any]) -> None:
    assert seen["own_process"]["seed"] == 7
    assert seen["own_process"]["draws"] == seen["own_process"]["draws_by_hand"]["123"]


@pytest.mark.parametrize("other", ["seven", "own_process"])
def test_greedy_requests_and_those_with_a_seed_of_their_own_do_not_change_with_it(
    seen: dict[str, Any], other: str
) -> None:
    assert seen[other]["greedy"] == seen["default"]["greedy"]
    assert seen[other]["request_seed"] == seen["default"]["request_seed"]


def test_unseeded_requests_change_with_it(seen: dict[str, Any]) -> None:
    assert seen["seven"]["unseeded"] != seen["default"]["unseeded"]


@pytest.mark.parametrize("engine", ["default", "seven", "own_process"])
def test_the_second_unseeded_call_in_one_process_differs_from_the_first(
    seen: dict[str, Any], engine: str
) -> None:
    first, second = seen[engine]["unseeded"]
    assert first != second
