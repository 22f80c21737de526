"""The choice among a machine's GPUs, and what is said of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.core.gpu import Gpu, GpuProcess, NvidiaDriver, choose_gpus, same_kind, visible_gpus
from repro_image.core.project import GpuSpec
from repro_image.errors import GpuBusyError, NoGpuError

MIB = 2**20
H100 = Gpu(
    index=0,
    uuid="GPU-aaaa0000",
    name="NVIDIA H100 80GB HBM3",
    compute_capability="9.0",
    memory_bytes=81559 * MIB,
    used_bytes=8 * MIB,
    sm_count=132,
    form="SXM",
)
L40S = replace(
    H100,
    index=1,
    uuid="GPU-bbbb0000",
    name="NVIDIA L40S",
    compute_capability="8.9",
    memory_bytes=46068 * MIB,
    form="PCIe",
)
SECOND = replace(H100, index=2, uuid="GPU-aaaa2222")
THIRD = replace(H100, index=3, uuid="GPU-aaaa3333")
ENGINE_CORE = GpuProcess(pid=4242, used_bytes=71680 * MIB, name="VLLM::EngineCore")
USED = replace(H100, used_bytes=72960 * MIB, processes=(ENGINE_CORE,))


def chosen(gpus: tuple[Gpu, ...], *, visible: str | None = None, **spec: Any) -> list[int]:
    return [gpu.index for gpu in choose_gpus(gpus, GpuSpec(**spec), visible=visible)]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, [0]),
        ({"models": ("NVIDIA L40S",)}, [1]),
        ({"models": ("NVIDIA L40S", "NVIDIA H100 80GB HBM3")}, [0]),
        ({"memory_gib": 80}, [0]),
        ({"count": 2}, [0, 2]),
        ({"count": 2, "models": ("NVIDIA H100 80GB HBM3",), "memory_gib": 80}, [0, 2]),
    ],
)
def test_the_first_gpus_that_fit_and_are_of_one_kind_are_chosen(
    spec: dict[str, Any], expected: list[int]
) -> None:
    assert chosen((H100, L40S, SECOND), **spec) == expected


def test_a_gpu_that_is_used_lost_or_cut_up_is_passed_over() -> None:
    lost, cut = replace(H100, fault="GPU is lost"), replace(L40S, mig=True)
    assert chosen((USED, SECOND)) == [2]
    assert chosen((lost, cut, SECOND)) == [2]


def test_another_kind_is_taken_when_the_first_is_in_use() -> None:
    assert chosen((USED, L40S)) == [1]


def test_an_idle_desktop_is_no_use_and_a_cuda_context_is() -> None:
    assert chosen((replace(H100, used_bytes=128 * MIB),)) == [0]
    with pytest.raises(GpuBusyError):
        chosen((replace(H100, used_bytes=129 * MIB),))


def test_a_gpu_in_use_is_refused_with_pid_name_and_memory() -> None:
    with pytest.raises(GpuBusyError) as caught:
        chosen((USED, L40S), models=("NVIDIA H100 80GB HBM3",))
    assert caught.value.exit_code == 4
    assert caught.value.uses == (
        "GPU 0 NVIDIA H100 80GB HBM3: 72960 MiB in use (pid 4242 VLLM::EngineCore 71680 MiB)",
    )


def test_use_by_processes_that_are_not_told_is_refused_too() -> None:
    with pytest.raises(GpuBusyError, match="no process is told: another container or user"):
        chosen((replace(USED, processes=()),))


def test_a_process_without_a_name_is_told_by_its_pid() -> None:
    gpu = replace(USED, processes=(GpuProcess(pid=7, used_bytes=0),))
    assert gpu.describe_use() == "72960 MiB in use (pid 7 0 MiB)"


def test_what_does_not_fit_is_told_for_each_gpu() -> None:
    gpus = (L40S, replace(H100, fault="GPU is lost", name=""), replace(SECOND, mig=True), THIRD)
    with pytest.raises(NoGpuError) as caught:
        chosen(gpus, models=("NVIDIA H100 80GB HBM3",), count=2, memory_gib=80)
    error = caught.value
    assert error.exit_code == 4
    assert error.wanted == "2 GPUs of one kind, NVIDIA H100 80GB HBM3, of 80 GiB or more"
    assert error.found == (
        "GPU 1 NVIDIA L40S: another model",
        "GPU 0: GPU is lost",
        "GPU 2 NVIDIA H100 80GB HBM3: in MIG mode",
        "GPU 3 NVIDIA H100 80GB HBM3: fits",
    )


def test_two_gpus_of_different_kinds_are_not_two() -> None:
    with pytest.raises(NoGpuError):
        chosen((H100, L40S), count=2)


def test_too_little_memory_is_told() -> None:
    with pytest.raises(NoGpuError, match="GPU 1 NVIDIA L40S: 45 GiB"):
        chosen((L40S,), memory_gib=80)


def test_a_machine_without_gpus_has_none_that_fits() -> None:
    with pytest.raises(NoGpuError, match="needed is a GPU; found: none"):
        chosen(())


def test_gpus_that_the_caller_may_not_use_are_left_out_and_counted() -> None:
    assert chosen((H100, L40S, SECOND), visible="2") == [2]
    with pytest.raises(NoGpuError, match="CUDA_VISIBLE_DEVICES hides 2 more"):
        chosen((H100, L40S, SECOND), visible="1", models=("NVIDIA H100 80GB HBM3",))


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0,1", [0, 1]),
        ("2, 0", [2, 0]),
        ("GPU-bbbb0000", [1]),
        ("GPU-b", [1]),
        ("GPU-aaaa", []),  # two begin so
        ("", []),
        ("-1", []),
        ("0,-1,1", [0]),
        ("0,7,1", [0]),
        ("MIG-1", []),
        ("all", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(visible: str, expected: list[int]) -> None:
    assert [gpu.index for gpu in visible_gpus((H100, L40S, SECOND), visible)] == expected


@given(
    st.lists(st.sampled_from([H100, L40S, SECOND, THIRD, USED]), max_size=5),
    st.integers(1, 3),
    st.none() | st.text("0123,- ", max_size=6),
)
def test_what_is_chosen_is_as_many_of_one_kind_and_free(
    gpus: list[Gpu], count: int, visible: str | None
) -> None:
    try:
        found = choose_gpus(gpus, GpuSpec(count=count), visible=visible)
    except (NoGpuError, GpuBusyError):
        return
    assert len(found) == count
    assert same_kind(found)
    assert not any(gpu.is_busy for gpu in found)
    assert set(found) <= set(gpus)


def test_kinds_differ_by_name_capability_and_memory() -> None:
    assert same_kind((H100, SECOND, THIRD))
    assert same_kind(())
    assert not same_kind((H100, L40S))
    assert not same_kind((H100, replace(SECOND, memory_bytes=95830 * MIB)))


def test_memory_is_rounded_to_gib_and_consumer_cards_are_known_by_name() -> None:
    assert (H100.memory_gib, L40S.memory_gib) == (80, 45)
    assert replace(H100, name="NVIDIA GeForce RTX 4090").is_geforce
    assert replace(H100, name="NVIDIA TITAN RTX").is_geforce
    assert not H100.is_geforce


def test_a_gpu_is_described_by_what_is_known() -> None:
    assert (
        H100.describe() == "NVIDIA H100 80GB HBM3 (SXM), 80 GiB, compute capability 9.0, 132 multiprocessors"
    )
    named = replace(H100, name="NVIDIA H100 PCIe", form="PCIe", sm_count=None)
    assert named.describe() == "NVIDIA H100 PCIe, 80 GiB, compute capability 9.0"
    lost = Gpu(index=0, uuid="", name="", compute_capability=None, memory_bytes=0, fault="GPU is lost")
    assert lost.describe() == ""


def test_a_driver_is_described_by_its_versions_or_its_fault() -> None:
    assert NvidiaDriver(version="580.95.05", cuda="13.0").describe() == "580.95.05, CUDA 13.0"
    assert NvidiaDriver(version="580.95.05", cuda=None).describe() == "580.95.05, CUDA unknown"
    assert NvidiaDriver(version="", cuda=None, fault="Driver Not Loaded").describe() == "Driver Not Loaded"
