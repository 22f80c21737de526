"""Rules on the lock of an image for GPUs, which need no machine."""

import pytest
from msgspec.structs import replace

from repro_image.core.constraints import lock_findings
from repro_image.core.finding import Finding, Level
from repro_image.core.lockfile import Locks
from repro_image.core.project import ImageSpec
from tests.unit.made_hosts import TABLES, by_rule, cuda_image, cuda_locks
from tests.unit.made_locks import make_locks, shipped_image

TOOLKIT = TABLES.toolkit_row("13.0")
READ = "torch 2.13.0: the wheel itself; vllm 0.32.0: the wheel itself"


def found(rule: str, locks: Locks, image: ImageSpec | None = None) -> Finding:
    return by_rule(lock_findings(image or cuda_image(), locks, TABLES))[rule]


def test_the_shipped_releases_meet_every_rule() -> None:
    findings = lock_findings(cuda_image(models=("NVIDIA L4",)), cuda_locks(), TABLES)
    assert list(by_rule(findings)) == [
        "python of the lock",
        "python of the wheels",
        "architecture of the wheels",
        "glibc of the wheels",
        "known vulnerabilities of the wheels",
        "constraints.image_mib",
        "CUDA of the wheels",
        "driver floor of the wheels",
        "CUDA compilers of the wheels",
        "compute capabilities of the wheels",
        "PTX of the wheels",
        "wheels for gpu.models",
        "kernels made at run time",
    ]
    assert {finding.level for finding in findings} == {Level.OK}
    assert not any(finding.fix for finding in findings)


def test_an_image_without_gpus_has_no_rule_on_them() -> None:
    rules = by_rule(lock_findings(shipped_image(), cuda_locks(), TABLES))
    assert list(rules)[-1] == "constraints.image_mib"


def test_before_the_first_lock_nothing_but_that_is_found() -> None:
    assert list(by_rule(lock_findings(cuda_image(), None, TABLES))) == ["locks"]


def test_one_major_cuda_release_is_met() -> None:
    assert found("CUDA of the wheels", cuda_locks()) == Finding(
        rule="CUDA of the wheels",
        found="torch 13.0, vllm 13.0, nvidia-cuda-runtime 13.0",
        needed="one major release",
        level=Level.OK,
        source=READ,
    )


@pytest.mark.parametrize(
    ("changed", "level", "told"),
    [
        (
            ("torch-2.9.1-cp311-cp311-manylinux_2_28_x86_64.whl",),
            Level.ERROR,
            "torch 12.8, vllm 13.0, nvidia-cuda-runtime 13.0",
        ),
        (
            ("nvidia_cuda_runtime-12.8.90-py3-none-manylinux_2_27_x86_64.whl",),
            Level.ERROR,
            "torch 13.0, vllm 13.0, nvidia-cuda-runtime 12.8",
        ),
        (
            ("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",),
            Level.ERROR,
            "torch for the CPU, vllm 13.0, nvidia-cuda-runtime 13.0",
        ),
        (
            ("vllm-0.99.0-cp38-abi3-manylinux_2_28_x86_64.whl",),
            Level.WARNING,
            "torch 13.0, vllm unknown, nvidia-cuda-runtime 13.0",
        ),
    ],
)
def test_wheels_of_different_cuda_releases_are_an_error_and_unknown_ones_a_warning(
    changed: tuple[str, ...], level: Level, told: str
) -> None:
    finding = found("CUDA of the wheels", cuda_locks(*changed))
    assert (finding.level, finding.found) == (level, told)
    assert finding.fix.startswith("require releases of torch and vllm that were built for the same CUDA")


def test_the_driver_floor_follows_from_the_cuda_of_the_locked_torch() -> None:
    assert TOOLKIT is not None
    assert found("driver floor of the wheels", cuda_locks()) == Finding(
        rule="driver floor of the wheels",
        found="CUDA 13.0: driver 580 or newer",
        needed="a known floor",
        level=Level.OK,
        source=TOOLKIT.source,
    )
    older = cuda_locks("torch-2.9.1-cp311-cp311-manylinux_2_28_x86_64.whl")
    assert found("driver floor of the wheels", older).found == "CUDA 12.8: driver 525.60.13 or newer"


def test_without_a_row_for_torch_the_runtime_wheel_tells_the_cuda_release() -> None:
    unknown = cuda_locks("torch-2.99.0-cp311-cp311-manylinux_2_28_x86_64.whl")
    assert found("driver floor of the wheels", unknown).found == "CUDA 13.0: driver 580 or newer"
    old_name = make_locks("nvidia_cuda_runtime_cu12-12.8.90-py3-none-manylinux_2_27_x86_64.whl")
    assert found("driver floor of the wheels", old_name).found == "CUDA 12.8: driver 525.60.13 or newer"


def test_a_cuda_release_without_a_row_is_unknown() -> None:
    future = make_locks("nvidia_cuda_runtime-14.2.7-py3-none-manylinux_2_27_x86_64.whl")
    assert found("driver floor of the wheels", future) == Finding(
        rule="driver floor of the wheels",
        found="CUDA 14.2",
        needed="a known floor",
        level=Level.WARNING,
        source="cuda.toml",
        fix="add a row for this CUDA release to cuda.toml, with its source",
    )
    assert found("driver floor of the wheels", make_locks()).found == "CUDA unknown"


def test_a_compiler_of_another_cuda_release_is_a_warning() -> None:
    locks = cuda_locks("nvidia_cuda_nvcc-13.3.12-py3-none-manylinux_2_27_x86_64.whl")
    assert found("CUDA compilers of the wheels", locks) == Finding(
        rule="CUDA compilers of the wheels",
        found="nvidia-cuda-nvcc 13.3",
        needed="of CUDA 13.0",
        level=Level.WARNING,
        source="requirements.txt",
        fix="pin them to 13.0.* in the requirements: older drivers cannot load what a newer one writes",
    )
    assert found("CUDA compilers of the wheels", cuda_locks()).found == "all of them"


def test_the_capabilities_are_those_that_all_kernel_libraries_have_code_for() -> None:
    # torch has no code for 8.9 of its own; what it has for 8.6 runs there.
    assert found("compute capabilities of the wheels", cuda_locks()) == Finding(
        rule="compute capabilities of the wheels",
        found="7.5 8.0 8.6 8.9 9.0 10.0 12.0",
        needed="machine code in torch and vllm",
        level=Level.OK,
        source=READ,
    )


def test_capabilities_are_unknown_without_a_row_and_none_without_common_code() -> None:
    rule = "compute capabilities of the wheels"
    unknown = cuda_locks("vllm-0.99.0-cp38-abi3-manylinux_2_28_x86_64.whl")
    assert found(rule, unknown).level is Level.WARNING
    assert found(rule, unknown).found == "unknown for vllm"
    rows = tuple(replace(row, code=("5.0",)) if row.name == "vllm" else row for row in TABLES.wheel)
    tables = replace(TABLES, wheel=rows)
    finding = by_rule(lock_findings(cuda_image(), cuda_locks(), tables))[rule]
    assert (finding.level, finding.found) == (Level.ERROR, "none in common")


def test_wheels_that_nobody_has_read_may_hold_ptx() -> None:
    assert found("PTX of the wheels", cuda_locks()).found == "of CUDA 13.0"
    unread = cuda_locks("vllm-0.31.0-cp38-abi3-manylinux_2_28_x86_64.whl")
    finding = found("PTX of the wheels", unread)
    assert (finding.level, finding.found) == (Level.WARNING, "unknown for vllm")


@pytest.mark.parametrize(
    ("models", "level", "told"),
    [
        (("NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB"), Level.OK, "code for all of them"),
        (("NVIDIA H100 SXM",), Level.WARNING, "NVIDIA H100 SXM: unknown"),
        # bfloat16 and FlashAttention, which the image asks for, need 8.0.
        (("Tesla T4", "NVIDIA H200"), Level.ERROR, "Tesla T4: compute capability 7.5 is not served"),
        (("NVIDIA L4", "no name"), Level.ERROR, "NVIDIA L4: sold with 24 GB"),
    ],
)
def test_models_that_can_never_meet_what_the_image_demands_are_an_error(
    models: tuple[str, ...], level: Level, told: str
) -> None:
    finding = found("wheels for gpu.models", cuda_locks(), cuda_image(models=models, memory_gib=40))
    assert (finding.level, finding.found, finding.needed) == (level, told, ", ".join(models))


def test_a_package_that_would_download_kernels_is_a_warning_unless_a_setting_leaves_it_out() -> None:
    locks = cuda_locks("flashinfer_python-0.7.0.post1-py3-none-any.whl")
    image = cuda_image()
    settled = found("kernels made at run time", locks, image)
    assert (settled.level, settled.found) == (Level.OK, "flashinfer-python, torch, vllm")
    environment = {**image.golden.environment, "VLLM_USE_FLASHINFER_SAMPLER": "1"}
    open_ = replace(image, golden=replace(image.golden, environment=environment))
    assert found("kernels made at run time", locks, open_) == Finding(
        rule="kernels made at run time",
        found="flashinfer-python downloads kernels, or compiles them with nvcc",
        needed="none that asks a network",
        level=Level.WARNING,
        source="the wheel of flashinfer-python 0.7.0.post1, vllm 0.32.0",
        fix="set VLLM_USE_FLASHINFER_SAMPLER=0 in [golden.environment]",
    )
