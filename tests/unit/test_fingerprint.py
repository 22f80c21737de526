import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.core.canonical import canonical_digest
from repro_image.core.fingerprint import (
    CudaClass,
    class_differences,
    cpu_class,
    numeric_flags,
    without_passing,
)
from repro_image.core.gpu import Gpu, GpuProcess
from tests.unit.made_locks import make_host

HOST = replace(make_host(), l2_kib=2048)


@given(st.lists(st.sampled_from(["avx2", "fma", "sse4_1", "amx_bf16", "mmx", "hypervisor", "md_clear"])))
def test_numeric_flags_are_sorted_and_leave_out_what_changes_no_number(flags: list[str]) -> None:
    found = numeric_flags(tuple(flags))
    assert list(found) == sorted(flag for flag in flags if flag not in ("mmx", "hypervisor", "md_clear"))


@pytest.mark.parametrize(
    "change",
    [
        {"cpu_stepping": 9},
        {"microcode": "0x2"},
        {"kernel": "6.12"},
        {"memory_bytes": 1},
        {"cpu_name": "other"},
        {"flags": (*HOST.flags, "md_clear")},
        {"engine": "28.0"},
    ],
)
def test_what_changes_no_number_is_no_part_of_the_class(change: dict[str, object]) -> None:
    assert cpu_class(replace(HOST, **change), threads=2) == cpu_class(HOST, threads=2)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cpu_vendor": "AuthenticAMD"}, "vendor"),
        ({"cpu_family": 25}, "family"),
        ({"cpu_model": 1}, "model"),
        ({"flags": ("avx2", "fma")}, "flags"),
        ({"architecture": "aarch64"}, "architecture"),
        ({"l2_kib": 1024}, "l2_kib"),
    ],
)
def test_what_changes_numbers_makes_another_class(change: dict[str, object], field: str) -> None:
    expected, found = cpu_class(HOST, threads=2), cpu_class(replace(HOST, **change), threads=2)
    assert [difference[0] for difference in class_differences(expected, found)] == [field]
    assert expected.digest != found.digest


def test_a_class_whose_cache_is_unknown_is_named_as_before_and_fits_any() -> None:
    known, unknown = (cpu_class(replace(HOST, l2_kib=kib), threads=2) for kib in (2048, 0))
    assert class_differences(unknown, known) == class_differences(known, unknown) == ()
    fields = msgspec.to_builtins(unknown)
    assert fields.pop("l2_kib") == 0
    assert unknown.digest == canonical_digest(fields) != known.digest


def test_another_number_of_threads_is_another_class() -> None:
    one, two = cpu_class(HOST, threads=1), cpu_class(HOST, threads=2)
    assert class_differences(one, two) == (("threads", 1, 2), ("cpus", 1, 2))


def test_an_unknown_capability_matches_any_and_two_known_ones_must_agree() -> None:
    unknown, avx2, avx512 = (cpu_class(HOST, threads=2, capability=c) for c in ("", "AVX2", "AVX512"))
    assert class_differences(unknown, avx2) == class_differences(avx2, unknown) == ()
    assert class_differences(avx2, avx512) == (("capability", "AVX2", "AVX512"),)


def test_a_record_keeps_no_serial_number_of_a_gpu_and_not_who_used_it() -> None:
    gpu = Gpu(
        index=0,
        uuid="GPU-1",
        name="NVIDIA L4",
        compute_capability="8.9",
        memory_bytes=2**34,
        used_bytes=2**20,
        processes=(GpuProcess(pid=7, used_bytes=2**20, name="someone"),),
    )
    (kept,) = without_passing(replace(make_host(), gpus=(gpu,))).gpus
    assert kept == replace(gpu, uuid="", used_bytes=0, processes=())


def test_a_class_of_another_kind_differs_by_its_kind_alone() -> None:
    cuda = CudaClass(gpu="NVIDIA L4", compute_capability="8.9", sm_count=58, memory_gib=22, count=1)
    cpu = cpu_class(make_host(), threads=2)
    assert class_differences(cuda, cpu) == (("kind", "cuda", "cpu"),)


def test_a_count_of_multiprocessors_that_is_unknown_before_a_run_matches_any() -> None:
    known = CudaClass(gpu="NVIDIA L4", compute_capability="8.9", sm_count=58, memory_gib=22, count=1)
    assert class_differences(known, replace(known, sm_count=0)) == ()
    assert class_differences(known, replace(known, sm_count=60)) == (("sm_count", 58, 60),)
    assert known.digest != replace(known, tensor_parallel=2).digest
