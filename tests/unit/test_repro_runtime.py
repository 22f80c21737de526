"""repro_runtime without torch: set_seed, disable_auto_optimization, fingerprint, what is imported when."""

import inspect
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints, is_typeddict

import pytest

import repro_runtime
from repro_runtime import process
from tests.unit.fresh_python import python

DISTRIBUTION = Path(__file__).parents[2] / "tooling/repro_runtime"


def installed(folder: Path, *names: str) -> Path:
    """Make packages that are there and empty."""
    for name in names:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
    return folder


CAUGHT = """
import json, os, sys, warnings
import repro_runtime
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    {call}
print(json.dumps([[w.category.__name__, str(w.message), os.path.basename(w.filename)] for w in caught]))
"""


def warnings_of(call: str, **settings: Any) -> list[list[str]]:
    told: list[list[str]] = json.loads(python(CAUGHT.format(call=call), **settings))
    return told


# set_seed


def test_a_seed_makes_python_and_numpy_repeat_and_is_returned() -> None:
    code = """
import json, repro_runtime
seeded = repro_runtime.set_seed(7)
import random, numpy
print(json.dumps([seeded, random.random(), numpy.random.rand(2).tolist()]))
"""
    first = python(code)
    assert python(code) == first
    assert json.loads(first)[0] == {"python": 7, "numpy": 7}
    assert python(code.replace("(7)", "(8)")) != first


def test_a_seed_of_64_bits_is_folded_for_numpy() -> None:
    code = "import repro_runtime; print(repro_runtime.set_seed(5 * 2**32 + 3))"
    assert python(code) == "{'python': 21474836483, 'numpy': 6}\n"


def test_without_numpy_python_alone_is_seeded() -> None:
    assert (
        python("import repro_runtime; print(repro_runtime.set_seed(7))", flags=("-S",)) == "{'python': 7}\n"
    )


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_of_64_bits_is_refused_before_anything_is_seeded(seed: int) -> None:
    code = f"""
import random, repro_runtime
state = random.getstate()
try:
    repro_runtime.set_seed({seed})
except ValueError as error:
    print(error, state == random.getstate())
"""
    assert python(code) == f"a seed is 0 to 2**64 - 1, not {seed} True\n"


def test_threads_share_what_is_seeded_and_together_draw_what_one_would() -> None:
    code = """
import random, threading, repro_runtime
repro_runtime.set_seed(7)
alone = [random.random() for _ in range(400)]
repro_runtime.set_seed(7)
drawn = []
def draw(): drawn.extend([random.random() for _ in range(100)])
threads = [threading.Thread(target=draw) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(drawn) == sorted(alone))
"""
    assert python(code) == "True\n"


FORKED = """
import os, random, sys, repro_runtime
repro_runtime.set_seed(7)
import numpy
child = os.fork()
if child:
    os.waitpid(child, 0)
{here}
print(random.random(), numpy.random.rand())
"""


def test_a_forked_process_repeats_numpy_and_has_python_seeded_anew_by_python_itself() -> None:
    forked, here = (line.split() for line in python(FORKED.format(here="")).splitlines())
    assert forked[1] == here[1]
    assert forked[0] != here[0]


def test_a_forked_process_that_calls_set_seed_repeats() -> None:
    code = FORKED.format(here="if not child:\n    repro_runtime.set_seed(8)")
    first = python(code)
    assert python(code) == first
    assert len(set(first.split())) == 4


# disable_auto_optimization

SWITCHED = """
import json, os, dataclasses, warnings
warnings.simplefilter("ignore")
import repro_runtime
{before}
first, second = repro_runtime.disable_auto_optimization(), repro_runtime.disable_auto_optimization()
print(json.dumps([dataclasses.asdict(first), dataclasses.asdict(second), dict(os.environ)]))
"""


def switched(before: str = "", **settings: Any) -> tuple[dict[str, Any], dict[str, Any], Mapping[str, str]]:
    first, second, environment = json.loads(python(SWITCHED.format(before=before), flags=("-S",), **settings))
    return first, second, environment


def test_without_torch_the_variables_are_set_and_the_rest_is_told() -> None:
    first, second, environment = switched()
    values = {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "NVIDIA_TF32_OVERRIDE": "0",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_TRITON_FORCE_FIRST_CONFIG": "1",
    }
    assert first["changed"] == [{"name": name, "old": None, "new": value} for name, value in values.items()]
    assert first["not_done"] == ["torch: not installed, so that nothing of it was switched"]
    assert {name: environment[name] for name in values} == values
    assert second == {"changed": [], "not_done": first["not_done"]}


def test_what_was_set_before_is_returned_and_what_does_as_well_is_kept() -> None:
    first, _, environment = switched(CUBLAS_WORKSPACE_CONFIG=":16:8", NVIDIA_TF32_OVERRIDE="1")
    changes = {change["name"]: change for change in first["changed"]}
    assert "CUBLAS_WORKSPACE_CONFIG" not in changes
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert changes["NVIDIA_TF32_OVERRIDE"]["old"] == "1"


def test_a_variable_that_vllm_has_read_already_is_not_set_and_told(tmp_path: Path) -> None:
    path = installed(tmp_path, "vllm")
    first, _, environment = switched("import vllm", path=path)
    (told, _) = first["not_done"]
    assert told.startswith("VLLM_TRITON_FORCE_FIRST_CONFIG=1 comes too late: vLLM is imported; call ")
    assert "VLLM_TRITON_FORCE_FIRST_CONFIG" not in environment
    told_as_warning = warnings_of(
        "import vllm; repro_runtime.disable_auto_optimization()",
        path=path,
        flags=("-S",),
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
    )
    assert told_as_warning == [["TooLateWarning", told, "<string>"]]


def test_autotuning_that_is_out_of_reach_is_told(tmp_path: Path) -> None:
    first, _, _ = switched(path=installed(tmp_path, "triton", "flashinfer"))
    assert [note.partition(":")[0] for note in first["not_done"]] == ["triton", "flashinfer", "torch"]


def test_with_vllm_triton_is_within_reach(tmp_path: Path) -> None:
    first, _, _ = switched(path=installed(tmp_path, "triton", "vllm"))
    assert [note.partition(":")[0] for note in first["not_done"]] == ["torch"]


# The engine's process


@pytest.mark.parametrize("call", ["repro_runtime.set_seed(1)", "repro_runtime.disable_auto_optimization()"])
@pytest.mark.parametrize("value", [None, "1", "2"])
def test_an_engine_in_another_process_is_warned_of(call: str, value: str | None, tmp_path: Path) -> None:
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": value} if value else {}
    ((category, message, file),) = warnings_of(
        call, path=installed(tmp_path, "vllm"), flags=("-S",), **environment
    )
    assert category == "EngineProcessWarning"
    assert "do not reach vLLM's engine" in message
    assert "VLLM_ENABLE_V1_MULTIPROCESSING=0" in message
    assert file == "<string>"  # the line of the caller


@pytest.mark.parametrize("call", ["repro_runtime.set_seed(1)", "repro_runtime.disable_auto_optimization()"])
def test_an_engine_in_this_process_or_none_is_no_reason_to_warn(call: str, tmp_path: Path) -> None:
    in_this = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    assert warnings_of(call, flags=("-S",)) == []
    (tmp_path / "folder/vllm").mkdir(parents=True)  # a clone that lies about is no installation
    assert warnings_of(call, path=tmp_path / "folder", flags=("-S",)) == []
    assert warnings_of(call, path=installed(tmp_path, "vllm"), flags=("-S",), **in_this) == []


# fingerprint


def test_a_fingerprint_is_json_repeats_and_holds_what_is_documented() -> None:
    code = "import json, repro_runtime; print(json.dumps(repro_runtime.fingerprint()))"
    first = python(code, OMP_NUM_THREADS="2", PYTHONHASHSEED="5", VLLM_API_KEY="secret", PATH="/bin")
    found = json.loads(first)
    assert python(code, OMP_NUM_THREADS="2", PYTHONHASHSEED="5", VLLM_API_KEY="other") == first
    assert set(found) == set(get_type_hints(process.Fingerprint))
    assert found["environment"] == {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "5"}
    assert found["python"]["hash_seed"] == "5"
    assert found["cpu"]["allowed"] == len(os.sched_getaffinity(0))
    assert (found["torch"], found["gpus"]) == (None, [])


@pytest.mark.parametrize(
    ("value", "expected"), [("", "random"), ("random", "random"), ("0", "0"), ("3", "3")]
)
def test_the_hash_seed_is_the_one_that_python_started_with(value: str, expected: str) -> None:
    code = "import repro_runtime; print(repro_runtime.fingerprint()['python']['hash_seed'])"
    assert python(code, PYTHONHASHSEED=value) == f"{expected}\n"


def test_versions_are_read_without_importing_what_they_are_of() -> None:
    code = """
import sys, repro_runtime
found = repro_runtime.fingerprint()
print(found["packages"]["numpy"], "numpy" in sys.modules)
import numpy
print(numpy.__version__)
"""
    seen, imported, version = python(code).split()
    assert (seen, imported) == (version, "False")


# The distribution


def test_it_is_imported_with_nothing_but_the_standard_library() -> None:
    code = "import sys, repro_runtime; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    own = {"repro_runtime", "__main__", "sitecustomize"}
    assert set(python(code, flags=("-S",)).split()) - own <= sys.stdlib_module_names


def test_everything_it_offers_and_every_key_of_a_fingerprint_is_documented() -> None:
    readme = (DISTRIBUTION / "README.md").read_text()
    shapes = [shape for _, shape in inspect.getmembers(process, is_typeddict)]
    keys = {key for shape in shapes for key in get_type_hints(shape)}
    assert len(keys) > 20
    assert [name for name in sorted(keys | set(repro_runtime.__all__)) if f"`{name}" not in readme] == []
