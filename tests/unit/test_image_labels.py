import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.core.compatibility import PtxKernels
from repro_image.core.demands import Demands, GpuDemands, demands_of
from repro_image.core.image_labels import LABEL_PREFIX, demand_labels, parse_demands
from repro_image.errors import InvalidLabelsError
from tests.unit.made_hosts import TABLES, cuda_demands, cuda_image, cuda_locks
from tests.unit.made_locks import shipped_image

REFERENCE = "ghcr.io/team/vllm-cuda:e0001-1a2b3c4d"
ROOT = {f"{LABEL_PREFIX}.root": "sha256:0"}


def labels(**changed: str) -> dict[str, str]:
    """Return the labels of the shipped image, some changed: `_` stands for a hyphen, two for a point."""
    names = {key.replace("__", ".").replace("_", "-"): text for key, text in changed.items()}
    return demand_labels(cuda_demands()) | {f"{LABEL_PREFIX}.{key}": text for key, text in names.items()}


def refused(given_labels: dict[str, str]) -> InvalidLabelsError:
    with pytest.raises(InvalidLabelsError) as caught:
        parse_demands(given_labels, reference=REFERENCE)
    assert (caught.value.exit_code, caught.value.where) == (3, f"labels of {REFERENCE}")
    return caught.value


def test_the_labels_of_the_shipped_image_say_what_it_demands() -> None:
    image = cuda_image(models=("NVIDIA H100 PCIe", "NVIDIA L4"), memory_gib=24, driver=">=580,<600")
    found = demand_labels(demands_of(image, cuda_locks(), TABLES))
    ptx = found.pop(f"{LABEL_PREFIX}.ptx")
    assert ptx.startswith("8.0@13.0/7.5,8.0 8.0@13.0/8.0 ")
    assert found == {
        f"{LABEL_PREFIX}.{key}": text
        for key, text in {
            "platform": "linux/amd64",
            "memory-gib": "16",
            "golden-memory-gib": "16",
            "threads": "2",
            "cuda": "13.0",
            "driver-floor": "580",
            "capability-floor": "8.0",
            "compute-capabilities": "7.5 8.0 8.6 8.9 9.0 10.0 12.0",
            "gpu.models": "NVIDIA H100 PCIe; NVIDIA L4",
            "gpu.count": "1",
            "gpu.memory-gib": "24",
            "gpu.driver": ">=580,<600",
            "gpu.tensor-parallel": "1",
        }.items()
    }


def test_an_image_without_gpus_demands_only_a_machine() -> None:
    demands = demands_of(shipped_image(), None, TABLES)
    found = demand_labels(demands)
    assert found[f"{LABEL_PREFIX}.platform"] == "linux/amd64"
    assert not [key for key in found if "gpu" in key]
    assert parse_demands(found, reference=REFERENCE) == replace(demands, is_foreign=True)


def test_what_the_labels_say_is_what_the_locks_said() -> None:
    assert parse_demands(labels(), reference=REFERENCE) == replace(cuda_demands(), is_foreign=True)


CODES = st.tuples(st.integers(1, 20), st.integers(0, 9)).map(lambda pair: f"{pair[0]}.{pair[1]}")
SPECIAL = st.tuples(CODES, st.sampled_from(["", "a", "f"])).map("".join)
KERNELS = st.builds(PtxKernels, code=st.lists(SPECIAL, max_size=3).map(tuple), ptx=CODES, cuda=CODES)
NUMBERS = st.integers(1, 999_999)
NAMES = st.sampled_from(["NVIDIA L4", "NVIDIA A100-SXM4-80GB", "Tesla T4", "Quadro RTX 6000/8000"])
GPUS = st.builds(
    GpuDemands,
    models=st.lists(NAMES, max_size=3, unique=True).map(tuple),
    count=NUMBERS,
    memory_gib=st.none() | NUMBERS,
    driver=st.none() | st.sampled_from([">=580", ">=580.65.06,<600", "~=580.1,!=580.2"]),
    tensor_parallel=NUMBERS,
    cuda=st.none() | CODES,
    driver_floor=st.none() | st.sampled_from(["580", "525.60.13"]),
    capability=st.none() | CODES,
    code=st.lists(SPECIAL, max_size=5).map(tuple),
    ptx=st.lists(KERNELS, max_size=4).map(tuple),
)
DEMANDS = st.builds(
    Demands,
    platform=st.sampled_from(["linux/amd64", "linux/arm64"]),
    cpu_flags=st.lists(st.sampled_from(["avx2", "fma"]), max_size=2).map(tuple),
    memory_gib=st.none() | NUMBERS,
    golden_memory_gib=st.none() | NUMBERS,
    threads=st.none() | NUMBERS,
    gpu=st.none() | GPUS,
    is_foreign=st.just(True),
)


@given(DEMANDS)
def test_labels_read_back_as_what_they_were_made_of(demands: Demands) -> None:
    assert parse_demands(demand_labels(demands), reference=REFERENCE) == demands


def test_an_image_of_ours_without_gpus_demands_nothing_of_them() -> None:
    assert parse_demands(ROOT, reference=REFERENCE) == Demands(is_foreign=True)


def test_an_image_without_our_labels_is_refused() -> None:
    error = refused({"org.opencontainers.image.title": "x", "io.github.repro-image": "x"})
    assert error.what == (
        "the image does not say what it demands of a machine: it has no label io.github.repro-image.…"
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"gpu__count": "0"}, "Expected `int` >= 1 - at `$.gpu.count`"),
        ({"gpu__count": "one"}, "io.github.repro-image.gpu.count is no number: 'one'"),
        ({"gpu__count": "1\n"}, "io.github.repro-image.gpu.count is no number: '1\\n'"),
        ({"gpu__count": "9999999"}, "is no number"),
        ({"gpu__count": "٣"}, "is no number"),
        ({"threads": "2.0"}, "is no number"),
        ({"cuda": "13"}, "`$.gpu.cuda`"),
        ({"driver_floor": "580\n"}, "`$.gpu.driver_floor`"),
        ({"compute_capabilities": "9.0  10.0"}, "`$.gpu.code[1]`"),
        ({"compute_capabilities": ""}, "`$.gpu.code[0]`"),
        ({"gpu__models": "NVIDIA L4;\x1b[31m"}, "`$.gpu.models[0]`"),
        ({"gpu__driver": ">=580; rm"}, "`$.gpu.driver`"),
        ({"gpu__driver": "~=580"}, "Invalid specifier: '~=580'"),
        ({"gpu__frobs": "1"}, "the label io.github.repro-image.'gpu.frobs' is unknown"),
        ({"ptx": "8.0"}, "io.github.repro-image.ptx holds '8.0'"),
        ({"ptx": "8.0@13.0/8.0,"}, "io.github.repro-image.ptx holds"),
        ({"ptx": "...@13.0/8.0"}, "`$.gpu.ptx[0].ptx`"),
        ({"cuda": "9" * 5000}, "io.github.repro-image.cuda has 5000 characters"),
        ({"platform": "linux/amd64/x"}, "`$.platform`"),
    ],
)
def test_a_label_that_we_never_write_is_refused(changed: dict[str, str], told: str) -> None:
    assert told in refused(labels(**changed)).what


@given(st.dictionaries(st.sampled_from(sorted(labels())), st.text(max_size=30)))
def test_no_label_breaks_the_reading(changed: dict[str, str]) -> None:
    with contextlib.suppress(InvalidLabelsError):
        parse_demands(labels() | changed, reference=REFERENCE)
