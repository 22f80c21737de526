import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro_image.adapters.host import (
    allowed_cpus,
    choose_cores,
    parse_cpu_list,
    parse_cpuinfo,
    parse_memory,
    parse_os_release,
    parse_toolkit_version,
    read_host,
    read_host_file,
    whole_cores,
)
from repro_image.core.canonical import readable_json
from repro_image.core.fingerprint import cpu_class, numeric_flags
from repro_image.errors import InvalidFileError

DATA = Path(__file__).parents[1] / "data/host"
ARM = """\
processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes sve bf16 i8mm
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1

processor\t: 1
CPU part\t: 0xd41
"""


def test_a_recorded_x86_processor_is_read() -> None:
    info = parse_cpuinfo((DATA / "cpuinfo.txt").read_text())
    assert (info.vendor, info.family, info.model, info.stepping) == ("GenuineIntel", 6, 207, 2)
    assert (info.name, info.microcode) == ("Intel(R) Xeon(R) Processor", "0x1")
    assert info.threads_per_core == 1
    assert {"avx2", "fma", "avx512f", "amx_tile"} <= set(info.flags)
    assert list(info.flags) == sorted(set(info.flags))


def test_an_arm_processor_is_read_by_its_own_names() -> None:
    info = parse_cpuinfo(ARM)
    assert (info.vendor, info.family, info.model, info.stepping) == ("0x41", 8, 0xD40, 1)
    assert numeric_flags(info.flags) == ("asimd", "bf16", "i8mm", "sve")


def test_hyper_threads_are_counted_where_only_cpuinfo_tells_them() -> None:
    assert parse_cpuinfo("siblings\t: 8\ncpu cores\t: 4\n").threads_per_core == 2


@pytest.mark.parametrize("text", ["", "\n\n", "processor : x\nmodel : about 7\ncpu cores : 0\n", "no colon"])
def test_a_processor_that_says_nothing_leaves_the_fields_empty(text: str) -> None:
    info = parse_cpuinfo(text)
    assert (info.vendor, info.family, info.model, info.flags, info.threads_per_core) == ("", 0, 0, (), 1)


def test_memory_and_system_are_read() -> None:
    assert parse_memory((DATA / "meminfo.txt").read_text()) == 24731708 * 1024
    assert parse_memory("") == 0
    assert parse_memory((DATA / "meminfo.txt").read_text(), field="MemAvailable") == 21552108 * 1024
    assert parse_os_release((DATA / "os-release.txt").read_text()) == "Debian GNU/Linux 12 (bookworm)"
    assert parse_os_release("NAME='Some Linux'\n") == "Some Linux"
    assert parse_os_release("") == "Linux"


@pytest.mark.parametrize(
    ("text", "cpus"), [("0\n", (0,)), ("0-2,5", (0, 1, 2, 5)), ("", ()), ("0-", ()), ("a,1", ())]
)
def test_kernel_lists_are_read(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@given(st.sets(st.integers(0, 500), min_size=1))
def test_a_kernel_list_of_single_processors_reads_back(cpus: set[int]) -> None:
    assert parse_cpu_list(",".join(map(str, sorted(cpus)))) == tuple(sorted(cpus))


def test_one_hardware_thread_is_chosen_per_core() -> None:
    hyper = [(0, (0, 4)), (1, (1, 5)), (4, (0, 4)), (5, (1, 5))]
    assert choose_cores(2, hyper) == "0,1"
    assert choose_cores(3, hyper) is None


def test_a_core_counts_once_also_when_its_first_thread_is_not_allowed() -> None:
    assert choose_cores(2, [(4, (0, 4)), (5, (1, 5)), (6, (2, 6))]) == "4,5"


def test_processors_without_known_siblings_are_cores_of_their_own() -> None:
    assert choose_cores(2, [(0, ()), (1, ())]) == "0,1"


def test_whole_cores_stay_within_what_the_process_may_use() -> None:
    cpuset = whole_cores(1)
    assert cpuset is not None
    assert int(cpuset) in os.sched_getaffinity(0)
    assert whole_cores(len(allowed_cpus()) + 1) is None


def test_this_machine_is_read_and_its_document_reads_back(tmp_path: Path) -> None:
    host = read_host()
    assert host.cpus == len(os.sched_getaffinity(0))
    assert host.memory_bytes > 2**28
    assert host.kernel == os.uname().release
    assert host.threads_per_core >= 1
    path = tmp_path / "host.json"
    path.write_text(readable_json(host))
    assert read_host_file(path) == host
    assert cpu_class(host, threads=1).threads == 1


def test_a_machine_without_proc_and_sys_gives_empty_fields(tmp_path: Path) -> None:
    host = read_host(tmp_path)
    assert (host.flags, host.memory_bytes, host.kernel) == ((), 0, "")
    assert (host.system, host.threads_per_core, host.l2_kib) == ("Linux", 1, 0)


def test_siblings_are_read_where_they_are_told(tmp_path: Path) -> None:
    first = allowed_cpus()[0]
    topology = tmp_path / f"sys/devices/system/cpu/cpu{first}/topology"
    topology.mkdir(parents=True)
    (topology / "thread_siblings_list").write_text(f"{first},{first + 64}\n")
    assert read_host(tmp_path).threads_per_core == 2


@pytest.mark.parametrize(
    ("size", "kib"), [("1024K\n", 1024), ("2048K\n", 2048), ("", 0), ("1M\n", 0), ("-1K\n", 0)]
)
def test_the_second_level_cache_is_read_where_it_is_told(tmp_path: Path, size: str, kib: int) -> None:
    caches = (("0", "1", "Data", "32K\n"), ("1", "2", "Instruction", "64K\n"), ("2", "2", "Unified", size))
    for index, level, kind, told in caches:
        folder = tmp_path / f"sys/devices/system/cpu/cpu{allowed_cpus()[0]}/cache/index{index}"
        folder.mkdir(parents=True)
        for name, text in (("level", level), ("type", kind), ("size", told)):
            (folder / name).write_text(text)
    assert read_host(tmp_path).l2_kib == kib


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVIDIA Container Toolkit CLI version 1.19.0\ncommit: ec7b4e2fa2caecad6d89be4a26029b831fe7503a\n",
            "1.19.0",
        ),
        ("NVIDIA Container Toolkit CLI version 1.11.0-rc.1\n", "1.11.0-rc.1"),
        (
            "cli-version: 1.17.4\nlib-version: 1.17.4\nbuild date: 2025-01-23T10:53+00:00\n"
            "build compiler: x86_64-linux-gnu-gcc-7 7.5.0\n",
            "1.17.4",
        ),
        ("", None),
        ("NVIDIA Container Toolkit CLI version unknown\n", None),
    ],
)
def test_the_container_toolkits_version_is_read_as_its_programs_print_it(
    text: str, version: str | None
) -> None:
    assert parse_toolkit_version(text) == version


def test_the_older_program_is_asked_where_the_newer_one_is_missing_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, text in (("nvidia-ctk", "exit 1"), ("nvidia-container-cli", "echo cli-version: 1.17.4")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    assert read_host().container_toolkit == "1.17.4"


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', "\x00", "[1]"])
def test_a_file_that_is_no_fingerprint_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "host.json"
    path.write_text(text)
    with pytest.raises(InvalidFileError) as caught:
        read_host_file(path)
    assert caught.value.what.startswith("not a fingerprint: ")
    assert (caught.value.where, caught.value.exit_code) == (str(path), 3)


def test_a_fingerprint_with_an_unknown_key_names_it(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    path.write_bytes(msgspec.json.encode({**msgspec.to_builtins(read_host()), "speed": 1}))
    with pytest.raises(InvalidFileError, match="speed"):
        read_host_file(path)


def test_a_missing_fingerprint_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError) as caught:
        read_host_file(tmp_path / "none.json")
    assert caught.value.what == "No such file or directory"
