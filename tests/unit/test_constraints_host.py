"""Rules on the GPUs and the NVIDIA software of a machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.core.compatibility import PtxKernels, is_code_for, is_ptx_for
from repro_image.core.constraints import check_constraints, host_findings
from repro_image.core.constraints_gpu import ptx_cuda, usable_gpus
from repro_image.core.demands import Demands, GpuDemands
from repro_image.core.finding import Finding, Level
from repro_image.core.fingerprint import Host
from repro_image.core.gpu import Gpu, NvidiaDriver
from tests.unit.made_hosts import (
    A100,
    DRIVER,
    H100,
    L4,
    RTX_4090,
    T4,
    TABLES,
    by_rule,
    cuda_demands,
    cuda_image,
    cuda_locks,
    gpu_host,
)
from tests.unit.made_locks import make_host, shipped_image

TOOLKIT = TABLES.toolkit_row("13.0")
CAPABILITY = "8.0 or newer; the wheels have machine code for 7.5 8.0 8.6 8.9 9.0 10.0 12.0"


def found(rule: str, host: Host, demands: Demands | None = None) -> Finding:
    return by_rule(host_findings(demands or cuda_demands(), host, TABLES))[rule]


def test_a_suitable_machine_meets_every_rule() -> None:
    demands = cuda_demands(models=(H100.name,), memory_gib=80, driver=">=580,<600")
    findings = host_findings(demands, gpu_host(H100), TABLES)
    assert [finding.rule for finding in findings if finding.source != "image.toml"] == [
        "NVIDIA driver",
        "driver floor",
        "GPU health",
        "MIG",
        "compute capability",
        "kernels that the driver compiles",
        "GPU model",
        "container toolkit",
    ]
    assert {"gpu.models", "gpu.memory_gib", "gpu.driver", "gpu.count"} <= set(by_rule(findings))
    gpu = [finding for finding in findings if "memory_gib" not in finding.rule]
    assert {finding.level for finding in gpu} == {Level.OK}
    assert not any(finding.fix for finding in gpu)


def test_an_image_without_gpus_has_no_rule_on_them() -> None:
    findings = check_constraints(shipped_image(), None, gpu_host(H100), tables=TABLES)
    assert list(by_rule(findings)) == [
        *("platform", "constraints.cpu_flags", "constraints.memory_gib", "golden.memory_gib"),
        *("golden.threads", "locks"),
    ]


def test_a_machine_without_the_driver_is_an_error_and_nothing_else_is_asked_of_it() -> None:
    rules = by_rule(host_findings(cuda_demands(), make_host(), TABLES))
    assert list(rules)[-1] == "NVIDIA driver"
    assert rules["NVIDIA driver"] == Finding(
        rule="NVIDIA driver",
        found="none",
        needed="one that answers",
        level=Level.ERROR,
        source="NVML",
        fix="use a machine with an NVIDIA GPU and its driver; `repro-image build --no-golden` needs neither",
    )


@pytest.mark.parametrize("fault", ["Driver Not Loaded", "Driver/library version mismatch"])
def test_a_driver_that_does_not_answer_is_an_error_in_its_own_words(fault: str) -> None:
    host = gpu_host(driver=NvidiaDriver(version="", cuda=None, fault=fault))
    rules = by_rule(host_findings(cuda_demands(), host, TABLES))
    assert list(rules)[-1] == "NVIDIA driver"
    assert rules["NVIDIA driver"] == Finding(
        rule="NVIDIA driver",
        found=fault,
        needed="one that answers",
        level=Level.ERROR,
        source="NVML",
        fix="restart the machine, or load the kernel module that belongs to the installed libraries",
    )


def test_a_driver_at_the_floor_is_met_and_its_rule_names_the_row() -> None:
    assert TOOLKIT is not None
    assert found("driver floor", gpu_host(H100)) == Finding(
        rule="driver floor",
        found="580.95.05",
        needed="580 or newer, for CUDA 13.0",
        level=Level.OK,
        source=TOOLKIT.source,
    )


@pytest.mark.parametrize(
    ("version", "gpu", "why"),
    [
        (
            "535.104.05",
            A100,
            "a libcuda of cuda-compat-13-0 in the image could bridge it, and none was seen at work",
        ),
        (
            "545.23.08",
            A100,
            "no branch that forward compatibility starts from (535, 550, 565, 570, 575)",
        ),
        ("570.26", RTX_4090, "forward compatibility does not support GeForce"),
    ],
)
def test_a_driver_below_the_floor_is_an_error_that_says_whether_forward_compatibility_could_help(
    version: str, gpu: Gpu, why: str
) -> None:
    assert TOOLKIT is not None
    host = gpu_host(gpu, driver=NvidiaDriver(version=version, cuda="12.8"))
    assert found("driver floor", host) == Finding(
        rule="driver floor",
        found=f"{version}; {why}",
        needed="580 or newer, for CUDA 13.0",
        level=Level.ERROR,
        source=TOOLKIT.source,
        fix="install driver 580 or newer",
    )


def test_an_older_cuda_takes_every_driver_of_its_major() -> None:
    host = gpu_host(A100, driver=NvidiaDriver(version="525.60.13", cuda="12.0"))
    demands = cuda_demands(cuda="12.8", driver_floor="525.60.13", ptx=())
    assert found("driver floor", host, demands).level is Level.OK


@pytest.mark.parametrize(
    ("host", "demands"),
    [
        (gpu_host(H100, driver=NvidiaDriver(version="", cuda=None)), cuda_demands()),
        (gpu_host(H100, driver=NvidiaDriver(version="?", cuda=None)), cuda_demands()),
        (gpu_host(H100), cuda_demands(cuda="14.2", driver_floor=None)),
    ],
)
def test_an_unknown_driver_or_floor_is_a_warning(host: Host, demands: Demands) -> None:
    assert found("driver floor", host, demands).level is Level.WARNING


@pytest.mark.parametrize(
    ("needed", "level"), [(">=580,<600", Level.OK), (">=590", Level.ERROR), ("==580.95.5", Level.OK)]
)
def test_the_range_of_image_toml_decides_besides_the_floor(needed: str, level: Level) -> None:
    finding = found("gpu.driver", gpu_host(H100), cuda_demands(driver=needed))
    assert (finding.level, finding.found, finding.needed) == (level, "580.95.05", needed)


def test_an_unreadable_driver_version_is_in_no_known_relation_to_the_range() -> None:
    host = gpu_host(H100, driver=NvidiaDriver(version="", cuda=None))
    assert found("gpu.driver", host, cuda_demands(driver=">=580")).level is Level.WARNING


def test_a_gpu_of_another_model_is_an_error() -> None:
    assert found("gpu.models", gpu_host(L4), cuda_demands(models=(H100.name, A100.name))) == Finding(
        rule="gpu.models",
        found="NVIDIA L4",
        needed="NVIDIA H100 80GB HBM3 or NVIDIA A100-SXM4-80GB",
        level=Level.ERROR,
        source="image.toml",
        fix="use a machine with such a GPU, or add this one's name to gpu.models (a new numeric class)",
    )


@pytest.mark.parametrize(
    ("gpu", "needed", "level"),
    [
        (L4, 24, Level.OK),  # shows 22.5 GiB
        (L4, 32, Level.ERROR),
        (T4, 16, Level.OK),
        (H100, 80, Level.OK),
        (H100, 81, Level.OK),
        (H100, 96, Level.ERROR),
        (replace(H100, memory_bytes=0), 80, Level.WARNING),
    ],
)
def test_memory_is_compared_as_it_is_sold(gpu: Gpu, needed: int, level: Level) -> None:
    host = gpu_host(gpu)
    assert found("gpu.memory_gib", host, cuda_demands(memory_gib=needed)).level is level


def test_every_card_of_the_table_is_sold_with_what_the_table_says() -> None:
    shown_mib = {"NVIDIA H100 NVL": 95830, "NVIDIA H200": 143771, "NVIDIA B200": 183359, "NVIDIA L40S": 46068}
    for name, mib in shown_mib.items():
        row = TABLES.gpu_row(name)
        assert row is not None
        assert replace(H100, memory_bytes=mib * 2**20).is_sold_with(row.memory_gb)
        assert not replace(H100, memory_bytes=mib * 2**20).is_sold_with(row.memory_gb * 2)


def test_a_capability_without_machine_code_is_an_error() -> None:
    thor = replace(H100, name="NVIDIA Thor", compute_capability="11.0")
    assert found("compute capability", gpu_host(thor)) == Finding(
        rule="compute capability",
        found="11.0",
        needed=CAPABILITY,
        level=Level.ERROR,
        source="settings.toml, wheels.toml",
        fix="use a GPU that fits, or lock releases and set an engine that work with this one",
    )
    assert found("compute capability", gpu_host(H100)) == Finding(
        rule="compute capability",
        found="9.0",
        needed=CAPABILITY,
        level=Level.OK,
        source="settings.toml, wheels.toml",
    )


def test_a_gpu_that_the_engine_s_settings_exclude_is_an_error_although_there_is_code_for_it() -> None:
    assert found("compute capability", gpu_host(T4)).level is Level.ERROR
    assert found("compute capability", gpu_host(T4), cuda_demands(capability=None)).level is Level.OK


def test_an_unknown_capability_is_a_warning() -> None:
    unknown = replace(H100, compute_capability=None)
    assert found("compute capability", gpu_host(unknown)).level is Level.WARNING
    assert found("compute capability", gpu_host(H100), cuda_demands(code=())).level is Level.WARNING
    assert found("kernels that the driver compiles", gpu_host(unknown)).level is Level.WARNING


KERNELS = (PtxKernels(code=("8.0",), ptx="8.0", cuda="12.8"),)


@pytest.mark.parametrize(
    ("gpu", "speaks", "level", "told"),
    [
        (A100, "12.2", Level.OK, "none"),
        (L4, "12.2", Level.OK, "none"),
        (T4, "12.2", Level.OK, "none"),  # too old for the PTX; no kernel of this kind runs there
        (H100, "12.2", Level.ERROR, "some, by a driver that speaks CUDA 12.2"),
        (H100, "12.8", Level.OK, "some, by a driver that speaks CUDA 12.8"),
        (H100, "13.0", Level.OK, "some, by a driver that speaks CUDA 13.0"),
        (H100, None, Level.WARNING, "some, by a driver that speaks an unknown CUDA"),
    ],
)
def test_kernels_without_machine_code_need_a_driver_as_new_as_their_compiler(
    gpu: Gpu, speaks: str | None, level: Level, told: str
) -> None:
    host = gpu_host(gpu, driver=NvidiaDriver(version="535.104.05", cuda=speaks))
    demands = cuda_demands(cuda="12.8", driver_floor="525.60.13", ptx=KERNELS, capability=None)
    finding = found("kernels that the driver compiles", host, demands)
    assert (finding.level, finding.found) == (level, told)
    assert finding.needed == "machine code, or a driver that speaks CUDA 12.8 (driver 570.26 or newer)"


CODES = st.tuples(st.integers(7, 12), st.integers(0, 9)).map(lambda pair: f"{pair[0]}.{pair[1]}")


@given(st.lists(CODES, max_size=4), CODES, CODES)
def test_a_kernel_is_compiled_exactly_where_no_code_and_some_ptx_fits(
    code: list[str], ptx: str, capability: str
) -> None:
    demands = GpuDemands(ptx=(PtxKernels(code=tuple(code), ptx=ptx, cuda="13.0"),))
    expected = is_ptx_for(ptx, capability) and not any(is_code_for(own, capability) for own in code)
    assert (ptx_cuda(demands, capability) == "13.0") is expected


def test_a_lost_gpu_is_an_error_unless_enough_others_are_healthy() -> None:
    lost = replace(H100, fault="GPU is lost", uuid="GPU-1")
    assert found("GPU health", gpu_host(lost)) == Finding(
        rule="GPU health",
        found="GPU is lost",
        needed="a GPU that its driver can read",
        level=Level.ERROR,
        source="NVML",
        fix="look for Xid errors in `dmesg`, then reset the GPU or restart the machine",
    )
    both = found("GPU health", gpu_host(lost, H100))
    assert (both.level, both.found) == (Level.WARNING, "GPU is lost (GPU 0); healthy (GPU 1)")


def test_a_gpu_in_mig_mode_is_an_error_unless_enough_others_are_not() -> None:
    sliced = replace(A100, mig=True, uuid="GPU-1")
    assert found("MIG", gpu_host(sliced)) == Finding(
        rule="MIG",
        found="on",
        needed="off",
        level=Level.ERROR,
        source="NVML",
        fix="turn it off with `nvidia-smi -i INDEX -mig 0`: slices of a GPU are no numeric class",
    )
    assert found("MIG", gpu_host(sliced, A100)).level is Level.OK
    assert found("MIG", gpu_host(sliced, A100), cuda_demands(count=2)).level is Level.ERROR


def test_gpus_are_counted_by_kind_and_only_those_that_meet_all_rules() -> None:
    second = replace(H100, uuid="GPU-1")
    assert found("gpu.count", gpu_host(H100, second), cuda_demands(count=2)) == Finding(
        rule="gpu.count",
        found="2 NVIDIA H100 80GB HBM3",
        needed="2 of one kind",
        level=Level.OK,
        source="image.toml",
    )
    assert found("gpu.count", gpu_host(H100, L4), cuda_demands(count=2)) == Finding(
        rule="gpu.count",
        found="1 NVIDIA H100 80GB HBM3, 1 NVIDIA L4",
        needed="2 of one kind",
        level=Level.ERROR,
        source="image.toml",
        fix="use a machine with more GPUs that meet the rules above, all of one kind",
    )
    # Each rule is met by one of the two, and no GPU meets both.
    either = cuda_demands(models=(L4.name,), memory_gib=80)
    assert found("gpu.models", gpu_host(H100, L4), either).level is Level.OK
    assert found("gpu.memory_gib", gpu_host(H100, L4), either).level is Level.OK
    assert found("gpu.count", gpu_host(H100, L4), either).found == "none, of 2 in all"


def test_two_kinds_that_fit_are_a_warning_until_one_is_named() -> None:
    mixed = gpu_host(H100, L4)
    finding = found("gpu.count", mixed)
    assert (finding.level, finding.found) == (Level.WARNING, "1 NVIDIA H100 80GB HBM3, 1 NVIDIA L4")
    assert finding.fix.startswith("name one model in gpu.models")
    named = found("gpu.count", mixed, cuda_demands(models=(L4.name,)))
    assert (named.level, named.found) == (Level.OK, "1 NVIDIA L4, of 2 in all")


def test_only_gpus_that_no_rule_forbids_are_usable() -> None:
    demands = cuda_demands(memory_gib=24).gpu
    assert demands is not None
    gpus = gpu_host(T4, L4, replace(H100, mig=True), replace(A100, fault="GPU is lost"), RTX_4090).gpus
    assert [gpu.name for gpu in usable_gpus(demands, gpus, DRIVER, TABLES)] == [L4.name, RTX_4090.name]


def test_a_model_without_a_row_is_a_warning_and_a_contradiction_an_error() -> None:
    new = replace(H100, name="NVIDIA H300")
    assert found("GPU model", gpu_host(new)) == Finding(
        rule="GPU model",
        found="NVIDIA H300 (unknown)",
        needed="a model of the table",
        level=Level.WARNING,
        source="gpus.toml",
        fix="add a row for it to gpus.toml, with its source",
    )
    assert found("GPU model", gpu_host(RTX_4090)).found == "NVIDIA GeForce RTX 4090 (geforce)"
    false = replace(H100, compute_capability="8.0")
    finding = found("GPU model", gpu_host(false))
    assert (finding.level, finding.found) == (Level.ERROR, "NVIDIA H100 80GB HBM3 says 8.0, is 9.0")


@pytest.mark.parametrize(
    ("toolkit", "foreign", "level"),
    [
        ("1.19.1", True, Level.OK),
        ("1.20.0-1", True, Level.OK),
        ("1.18.0", False, Level.WARNING),
        ("1.18.0", True, Level.ERROR),
        (None, True, Level.WARNING),
        ("unknown", True, Level.WARNING),
    ],
)
def test_an_old_container_toolkit_is_an_error_only_for_a_foreign_image(
    toolkit: str | None, foreign: bool, level: Level
) -> None:
    host = gpu_host(H100, toolkit=toolkit)
    assert found("container toolkit", host, replace(cuda_demands(), is_foreign=foreign)).level is level


def test_an_old_container_toolkit_is_told_with_every_vulnerability_that_it_has() -> None:
    assert found("container toolkit", gpu_host(H100, toolkit="1.17.5")) == Finding(
        rule="container toolkit",
        found="1.17.5, with CVE-2025-23266, CVE-2025-23267, CVE-2026-24260",
        needed="1.19.1 or newer",
        level=Level.WARNING,
        source="NVIDIA security bulletin of June 2026, https://nvidia.custhelp.com/app/answers/detail/a_id/5850",
        fix="install nvidia-container-toolkit 1.19.1 or newer; older ones let images out of containers",
    )


def test_a_machine_without_gpus_but_with_a_driver_lacks_what_is_counted() -> None:
    finding = found("gpu.count", gpu_host())
    assert (finding.level, finding.found) == (Level.ERROR, "none")
    assert found("compute capability", gpu_host()).found == "no GPU"


def test_locks_and_machine_are_checked_together_and_strictly_on_demand() -> None:
    image, locks = cuda_image(models=(H100.name,)), cuda_locks()
    host = replace(gpu_host(replace(H100, name="NVIDIA H300")), memory_bytes=32 * 2**30)
    findings = by_rule(check_constraints(image, locks, host, tables=TABLES))
    assert findings["gpu.models"].level is Level.ERROR
    unknown = replace(gpu_host(H100, toolkit=None), memory_bytes=32 * 2**30)
    assert not [f for f in check_constraints(image, locks, unknown, tables=TABLES) if f.level is Level.ERROR]
    strict = by_rule(check_constraints(image, locks, unknown, tables=TABLES, strict=True))
    assert [rule for rule, f in strict.items() if f.level is not Level.OK] == ["container toolkit"]
    assert strict["container toolkit"].level is Level.ERROR
