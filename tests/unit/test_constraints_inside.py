"""Rules on what a container of the image sees, and on the variables of an image that somebody else made."""

import pytest
from msgspec.structs import replace

from repro_image.core.constraints import foreign_findings, inside_findings
from repro_image.core.demands import Demands
from repro_image.core.finding import Finding, Level
from repro_image.core.gpu import Gpu, NvidiaDriver
from tests.unit.made_hosts import A100, DRIVER, H100, L4, RTX_4090, TABLES, by_rule, cuda_demands, gpu_host

INSIDE = replace(DRIVER, libcuda="13.0")


def found(
    rule: str,
    driver: NvidiaDriver | None,
    *gpus: Gpu,
    outside: tuple[Gpu, ...] = (H100,),
    host_driver: NvidiaDriver = DRIVER,
) -> Finding:
    host = gpu_host(*outside, driver=host_driver)
    return by_rule(inside_findings(cuda_demands(), host, driver, gpus, TABLES))[rule]


def test_a_container_that_sees_the_chosen_gpu_meets_every_rule() -> None:
    findings = inside_findings(cuda_demands(), gpu_host(H100, A100), INSIDE, (H100,), TABLES)
    assert list(by_rule(findings)) == [
        *("driver inside", "libcuda inside", "driver floor", "GPUs inside"),
        *("GPU health", "MIG", "compute capability", "kernels that the driver compiles"),
        *("gpu.count", "GPU model"),
    ]
    assert {finding.level for finding in findings} == {Level.OK}


def test_an_image_without_gpus_has_no_rule_on_them() -> None:
    assert inside_findings(Demands(), gpu_host(H100), None, (), TABLES) == ()


@pytest.mark.parametrize(
    ("driver", "told"),
    [
        (None, "none"),
        (NvidiaDriver(version="", cuda=None, fault="Driver Not Loaded"), "Driver Not Loaded"),
    ],
)
def test_a_container_without_a_driver_is_an_error_and_nothing_else_is_asked(
    driver: NvidiaDriver | None, told: str
) -> None:
    findings = inside_findings(cuda_demands(), gpu_host(H100), driver, (), TABLES)
    assert findings == (
        Finding(
            rule="driver inside",
            found=told,
            needed="580.95.05, as outside",
            level=Level.ERROR,
            source="NVML in a container",
            fix="run `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`, "
            "again after each change of driver",
        ),
    )


def test_another_driver_inside_than_outside_is_an_error() -> None:
    finding = found("driver inside", replace(INSIDE, version="580.65.06"), H100)
    assert (finding.level, finding.found) == (Level.ERROR, "580.65.06")


def test_no_libcuda_inside_is_an_error_that_names_the_driver_capabilities() -> None:
    assert found("libcuda inside", DRIVER, H100) == Finding(
        rule="libcuda inside",
        found="none was loaded",
        needed="CUDA 13",
        level=Level.ERROR,
        source="cuDriverGetVersion in a container",
        fix="let the container have the driver capabilities compute,utility (NVIDIA_DRIVER_CAPABILITIES)",
    )


def test_a_libcuda_of_an_older_major_is_an_error() -> None:
    old = NvidiaDriver(version="570.26", cuda="12.8", libcuda="12.8")
    assert found("libcuda inside", old, H100, host_driver=old).level is Level.ERROR


OLD = NvidiaDriver(version="535.104.05", cuda="12.2", libcuda="13.0")


def test_forward_compatibility_that_is_at_work_bridges_an_old_driver_on_a_datacenter_card() -> None:
    floor = found("driver floor", OLD, A100, outside=(A100,), host_driver=OLD)
    assert (floor.level, floor.found) == (
        Level.OK,
        "535.104.05; forward compatibility: the image's libcuda speaks CUDA 13.0",
    )
    assert found("libcuda inside", OLD, A100, outside=(A100,), host_driver=OLD) == Finding(
        rule="libcuda inside",
        found="CUDA 13.0 on a driver of CUDA 12.2: forward compatibility",
        needed="CUDA 13",
        level=Level.OK,
        source="cuDriverGetVersion in a container",
    )
    compiled = found("kernels that the driver compiles", OLD, H100, host_driver=OLD)
    assert (compiled.level, compiled.found) == (Level.OK, "some, by a driver that speaks CUDA 13.0")


def test_forward_compatibility_on_geforce_is_an_error() -> None:
    finding = found("libcuda inside", OLD, RTX_4090, outside=(RTX_4090,), host_driver=OLD)
    assert (finding.level, finding.found) == (
        Level.ERROR,
        "CUDA 13.0 on a driver of CUDA 12.2: forward compatibility, which does not support GeForce",
    )
    assert finding.fix == "take the compat folder out of LD_LIBRARY_PATH or of the base image"
    assert found("driver floor", OLD, RTX_4090, outside=(RTX_4090,)).level is Level.ERROR


@pytest.mark.parametrize(
    ("gpus", "told"),
    [((), "0"), ((H100, A100), "2"), ((L4,), "1, not of this machine: GPU-L")],
)
def test_other_gpus_inside_than_the_chosen_ones_are_an_error(gpus: tuple[Gpu, ...], told: str) -> None:
    finding = found("GPUs inside", INSIDE, *gpus, outside=(H100, A100))
    assert (finding.level, finding.found, finding.needed) == (Level.ERROR, told, "1 of the machine's")


ANY_MACHINE = Demands(is_foreign=True, platform="linux/amd64")


def environment(**variables: str) -> dict[str, Finding]:
    return by_rule(foreign_findings(ANY_MACHINE, variables, gpu_host(), TABLES))


def test_an_image_without_loader_variables_is_met() -> None:
    rules = environment(PATH="/bin", LDFLAGS="-s", NVIDIA_DISABLE_REQUIRE="0")
    assert {finding.level for finding in rules.values()} == {Level.OK}


@pytest.mark.parametrize(
    ("variables", "level", "told"),
    [
        ({"LD_PRELOAD": "/proc/self/cwd/x.so"}, Level.ERROR, "LD_PRELOAD=/proc/self/cwd/x.so"),
        ({"LD_AUDIT": "x.so"}, Level.ERROR, "LD_AUDIT=x.so"),
        ({"LD_LIBRARY_PATH": "/evil"}, Level.ERROR, "LD_LIBRARY_PATH=/evil"),
        (
            {"LD_LIBRARY_PATH": "/usr/local/nvidia/lib:/usr/local/nvidia/lib64"},
            Level.WARNING,
            "LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64",
        ),
        ({"LD_AUDIT": "/usr/local/cuda/lib64"}, Level.ERROR, "LD_AUDIT=/usr/local/cuda/lib64"),
        (
            {"LD_LIBRARY_PATH": "/usr/local/cuda/lib64", "LD_PRELOAD": "x.so"},
            Level.ERROR,
            "LD_LIBRARY_PATH=/usr/local/cuda/lib64, LD_PRELOAD=x.so",
        ),
    ],
)
def test_loader_variables_of_a_foreign_image_are_refused(
    variables: dict[str, str], level: Level, told: str
) -> None:
    assert environment(**variables)["LD_* of the image"] == Finding(
        rule="LD_* of the image",
        found=told,
        needed="none",
        level=level,
        source="CVE-2025-23266: hooks of the NVIDIA Container Toolkit ran with the image's variables",
        fix="build an image without them; never run this one on a machine that you cannot lose",
    )


def test_an_image_that_turns_the_container_runtime_s_checks_off_is_refused() -> None:
    assert environment(NVIDIA_DISABLE_REQUIRE="true")["NVIDIA_DISABLE_REQUIRE of the image"] == Finding(
        rule="NVIDIA_DISABLE_REQUIRE of the image",
        found="set",
        needed="not set",
        level=Level.ERROR,
        source="NVIDIA Container Toolkit, image variables",
        fix="build an image without it: it turns the container runtime's own checks off",
    )


def test_a_foreign_image_is_held_to_the_machine_and_strictly_on_demand() -> None:
    demands = replace(cuda_demands(), is_foreign=True)
    rules = by_rule(foreign_findings(demands, {}, gpu_host(H100, toolkit=None), TABLES, strict=True))
    assert rules["container toolkit"].level is Level.ERROR
    assert rules["driver floor"].level is Level.OK


def test_an_image_that_does_not_say_what_it_demands_is_unknown_and_not_fine() -> None:
    (finding,) = [f for f in foreign_findings(Demands(is_foreign=True), {}, gpu_host(), TABLES) if f.fix]
    assert (finding.rule, finding.level) == ("labels", Level.WARNING)
    strict = foreign_findings(Demands(is_foreign=True), {}, gpu_host(), TABLES, strict=True)
    assert [f.rule for f in strict if f.level is Level.ERROR] == ["labels"]
    assert "labels" not in {f.rule for f in foreign_findings(ANY_MACHINE, {}, gpu_host(), TABLES)}
