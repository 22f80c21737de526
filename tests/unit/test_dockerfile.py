import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.adapters.files import Project
from repro_image.adapters.shipped import compatibility_tables
from repro_image.core.dockerfile import quoted, render_dockerfile, template_values
from repro_image.core.layers import HEAVY_BYTES
from repro_image.core.lockfile import Locks
from repro_image.core.project import ImageSpec
from repro_image.errors import InvalidFileError
from tests.unit.made_hosts import cuda_image, cuda_locks
from tests.unit.made_locks import ROOT, make_locks, shipped_image

DATA = Path(__file__).parents[1] / "data/dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")
PATH = "images/x/Dockerfile.j2"
TRITON = "triton-3.7.1-cp311-cp311-manylinux_2_27_x86_64.whl"

shipped = pytest.mark.parametrize("name", ["vllm-cpu", "vllm-cuda"])


def small_locks() -> Locks:
    """One heavy wheel and three light ones in buckets."""
    locks = make_locks(
        "numpy-2.1.0-cp311-cp311-linux_x86_64.whl",
        "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl",
        "vllm-0.25.0-cp38-abi3-manylinux1_x86_64.whl",
        "zipp-3.0-py3-none-any.whl",
    )
    wheels = tuple(
        replace(wheel, size_bytes=HEAVY_BYTES) if wheel.name == "torch" else wheel
        for wheel in locks.requirements.wheels
    )
    return replace(locks, requirements=replace(locks.requirements, wheels=wheels))


def shipped_text(name: str = "vllm-cpu") -> str:
    """Return the Dockerfile of a shipped image with small locks."""
    given = {"vllm-cpu": (shipped_image(), small_locks()), "vllm-cuda": (cuda_image(), cuda_locks(TRITON))}
    values = template_values(name, *given[name], compatibility_tables())
    return render_dockerfile(Project(ROOT).templates(name), values, path=f"images/{name}/Dockerfile.j2")


def render(text: str, **values: object) -> str:
    return render_dockerfile({"Dockerfile.j2": text}, values, path=PATH)


def refused(templates: dict[str, str], **values: object) -> InvalidFileError:
    with pytest.raises(InvalidFileError) as caught:
        render_dockerfile(templates, values, path=PATH)
    assert (caught.value.exit_code, caught.value.where) == (3, PATH)
    return caught.value


@shipped
def test_the_shipped_template_renders_to_the_recorded_text(name: str) -> None:
    # Changed on purpose? Read the difference, then record it: tests/data/dockerfile/README.md.
    assert shipped_text(name) == (DATA / f"{name}.Dockerfile").read_text(encoding="utf-8")


@shipped
def test_the_rendered_dockerfile_is_clean_for_hadolint(name: str, tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(shipped_text(name), encoding="utf-8")
    run = subprocess.run([HADOLINT, file], capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stdout) == (0, "")


@shipped
def test_nothing_in_the_rendered_dockerfile_needs_a_network(name: str) -> None:
    lines = shipped_text(name).splitlines()
    assert all(line.startswith("RUN --network=none") for line in lines if line.startswith("RUN"))
    sources = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert set(sources) == {"base", "root", "packages"}


def test_an_undefined_name_is_refused_with_file_line_and_the_known_names() -> None:
    error = refused({"Dockerfile.j2": "FROM base\nRUN {{ verson }}\n"}, version="1", name="x")
    assert error.what == "Dockerfile.j2 line 2: 'verson' is undefined"
    assert error.fix == "use one of the names: name, version"


def test_an_undefined_attribute_in_a_macro_is_refused_with_the_macros_file() -> None:
    macros = "{% macro m(group) %}\n\nRUN {{ group.nam }}\n{% endmacro %}\n"
    template = '{% from "m.j2" import m %}\nFROM base\n{{ m(group) }}\n'
    error = refused({"Dockerfile.j2": template, "m.j2": macros}, group={"name": "x"})
    assert error.what.startswith("m.j2 line 3: ")
    assert "has no attribute 'nam'" in error.what


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("FROM base\n{% if %}\n", "Dockerfile.j2 line 2: Expected an expression"),
        ("FROM base\n{% for a in b %}\n", "Dockerfile.j2 line 2: Unexpected end of template"),
        ("FROM {{ name | frob }}\n", "Dockerfile.j2 line 1: No filter named 'frob'"),
        ("FROM base\n\n{{ 1 // 0 }}\n", "Dockerfile.j2 line 3: "),
        ("FROM base\n{{ name + 1 }}\n", "Dockerfile.j2 line 2: "),
        ("FROM base\n{{ 'a\\nb' | quoted }}\n", "Dockerfile.j2 line 2: control character in 'a\\nb'"),
        ('FROM base\n{% include "other.j2" %}\n', "the template other.j2 is missing"),
    ],
)
def test_a_template_that_is_wrong_is_refused_with_its_line(text: str, told: str) -> None:
    assert refused({"Dockerfile.j2": text}, name="x").what.startswith(told)


def test_a_missing_template_is_refused() -> None:
    assert refused({}).what == "the template Dockerfile.j2 is missing"


@pytest.mark.parametrize(
    "line",
    [
        "# syntax=evil.example/frontend",
        "#syntax = evil.example/frontend",
        "\ufeff# syntax=evil.example/frontend",
        "  #\tSYNTAX=evil.example/frontend",
        "//syntax=evil.example/frontend",
        "# escape=`",
        '{"syntax": "evil.example/frontend"}',
    ],
)
def test_a_line_that_would_choose_another_frontend_is_refused(line: str) -> None:
    error = refused({"Dockerfile.j2": f"{line}\nFROM base\n"})
    assert error.what.startswith("line 1 of the rendered file is refused: ")
    refused({"Dockerfile.j2": "{{ line }}\nFROM base\n"}, line=line)


@pytest.mark.parametrize(
    "step",
    [
        'ENV HF_TOKEN="hf_x"',
        "ARG GITHUB_TOKEN",
        "  arg a=1 DEPLOY_KEY=x",
        "ENV MY_PASSWORD x",
        "ENV A=1 \\\n    API_SECRET=2",
        "ENV A=1 \\ \n\n    # note\n    HF_TOKEN=abc",
        "ONBUILD ENV HF_TOKEN=abc",
        'ENV "HF_TOKEN"=abc',
        "ARG A B_TOKEN",
    ],
)
def test_what_is_named_like_a_credential_is_refused_for_the_image_tells_it_all(step: str) -> None:
    error = refused({"Dockerfile.j2": f"FROM base\n{step}\n"})
    assert error.what.startswith("the rendered file has `")


def test_other_arguments_and_variables_are_kept() -> None:
    variables = 'ENV TOKENIZERS_PARALLELISM=0 KEYS=1 A="set the X_TOKEN=1 variable"\nENV NOTE of the X_TOKEN'
    text = f"FROM base\nARG SOURCE_DATE_EPOCH\n{variables}\nRUN echo A_TOKEN=1\n"
    assert render(text) == text


def test_other_comments_are_kept() -> None:
    text = "# the syntax of this file\n# a = b\nFROM base\n"
    assert render(text) == text


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_a_quoted_value_is_one_word_that_reads_back_and_expands_nothing(value: str) -> None:
    if re.search(r"[\x00-\x1f\x7f]", value):
        with pytest.raises(ValueError, match="control character"):
            quoted(value)
        return
    word = quoted(value)
    assert "\n" not in word
    assert re.fullmatch(r'"(?:[^"\\$]|\\["\\$])*"', word)
    assert re.sub(r"\\([\"\\$])", r"\1", word[1:-1]) == value


def test_labels_and_environment_follow_from_content_and_are_sorted() -> None:
    values = template_values("vllm-cpu", shipped_image(), small_locks(), compatibility_tables())
    assert values["labels"] == sorted(values["labels"])
    assert ("OMP_NUM_THREADS", "2") in values["environment"]
    assert values["groups"][0].name == "wheel-torch"
    again = template_values("vllm-cpu", shipped_image(), small_locks(), compatibility_tables())
    assert again == values


def variables(image: ImageSpec, locks: Locks) -> dict[str, str]:
    return dict(template_values("x", image, locks, compatibility_tables())["gpu_environment"])


def test_an_image_for_gpus_tells_container_runtimes_what_it_needs_and_names_a_folder_for_each_cache() -> None:
    assert variables(cuda_image(), cuda_locks(TRITON)) == {
        "CUDA_CACHE_PATH": "/tmp/cache/cuda",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "NVIDIA_REQUIRE_CUDA": "cuda>=13.0 driver>=580",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/cache/torchinductor",
        "TRITON_CACHE_DIR": "/tmp/cache/triton",
        "VLLM_CACHE_ROOT": "/tmp/cache/vllm",
    }
    assert variables(shipped_image(), small_locks()) == {}


def test_an_older_cuda_is_asked_of_container_runtimes_with_the_drivers_of_its_whole_major() -> None:
    locks = cuda_locks("torch-2.9.1-cp311-cp311-manylinux_2_28_x86_64.whl")
    assert variables(cuda_image(), locks)["NVIDIA_REQUIRE_CUDA"] == "cuda>=12.8 driver>=525"
    assert "NVIDIA_REQUIRE_CUDA" not in variables(cuda_image(), make_locks())


def test_image_toml_may_set_the_variables_of_an_image_for_gpus_itself() -> None:
    image = cuda_image()
    own = {"TRITON_CACHE_DIR": "/tmp/mine"}
    golden = replace(image.golden, environment={**image.golden.environment, **own})
    assert "TRITON_CACHE_DIR" not in variables(replace(image, golden=golden), cuda_locks(TRITON))
