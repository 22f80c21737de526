"""Made-up machines with GPUs, as the command line and real containers see them by NVIDIA's libraries."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pynvml
import pytest

from repro_image.adapters.engine import Engine, Mount
from repro_image.adapters.gpu_container import probe_inside
from repro_image.core.fingerprint import Host, cuda_class
from repro_image.core.gpu import Gpu, GpuProbe, NvidiaDriver, choose_gpus
from repro_image.core.project import GpuSpec
from repro_image.errors import EngineCallError, GpuBusyError, GpuProbeError, NoGpuAccessError, NoGpuError
from tests.fake_gpu import Profile, cdi_devices, profile, profile_names

pytestmark = [
    pytest.mark.docker,
    # The SDK leaves the socket of a connection that fails to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PROGRAM = Path(sys.executable).with_name("repro-image")
PROBE = Path(__file__).parents[2] / "tooling/repro_image/runner/gpu_probe.py"
MIB = 2**20
# What NVIDIA's data sheets say of each card's form.
SXM = ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA A100-SXM4-40GB", "NVIDIA B200")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect what a test leaves while its own filters of warnings hold."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


def command(machine: Profile, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **machine.environment()}
    return subprocess.run(
        [PROGRAM, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def host_of(machine: Profile) -> Host:
    done = command(machine, "fingerprint", "--json")
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=Host)


def doctor_rows(machine: Profile) -> dict[str, dict[str, Any]]:
    return {row["what"]: row for row in json.loads(command(machine, "doctor", "--json").stdout)}


def described(machine: Profile) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return the keys of a profile: those of the driver, and those of each GPU."""
    parts: list[dict[str, str]] = [{}]
    for line in machine.path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == "gpu":
            parts.append({})
        elif key not in ("", "#", "process"):
            parts[-1][key] = value
    return parts[0], parts[1:]


def mode(keys: dict[str, str], name: str) -> bool | None:
    return bool(int(keys[name])) if name in keys else None


def expected(keys: dict[str, str], index: int) -> Gpu:
    if "fault" in keys or "handle_fault" in keys:
        return Gpu(
            index=index, uuid="", name="", compute_capability=None, memory_bytes=0, fault="GPU is lost"
        )
    return Gpu(
        index=index,
        uuid=keys["uuid"],
        name=keys["name"],
        compute_capability=keys["capability"],
        memory_bytes=int(keys["memory_mib"]) * MIB,
        used_bytes=int(keys["used_mib"]) * MIB,
        sm_count=int(keys["sm"]),
        form="SXM" if keys["name"] in SXM else "PCIe",
        ecc=mode(keys, "ecc"),
        mig=mode(keys, "mig"),
        vbios=keys["vbios"],
    )


FAULTS = {9: "Driver Not Loaded", 18: "Driver/library version mismatch"}


@pytest.mark.parametrize("name", profile_names())
def test_every_machine_is_told_as_it_is(name: str) -> None:
    machine = profile(name)
    driver, gpus = described(machine)
    host = host_of(machine)
    assert host.nvidia is not None
    if "init" in driver:
        assert host.nvidia == NvidiaDriver(version="", cuda=None, fault=FAULTS[int(driver["init"])])
        assert host.gpus == ()
        return
    cuda = int(driver["cuda"])
    assert (host.nvidia.version, host.nvidia.cuda) == (
        driver["driver"],
        f"{cuda // 1000}.{cuda % 1000 // 10}",
    )
    assert host.nvidia.fault == ""
    found = [msgspec.structs.replace(gpu, processes=()) for gpu in host.gpus]
    assert found == [expected(keys, index) for index, keys in enumerate(gpus)]


def test_the_processes_of_a_gpu_in_use_are_told_to_doctor_and_to_the_choice() -> None:
    machine = profile("busy")
    used, idle = host_of(machine).gpus
    told = [(process.pid, process.name, process.used_bytes // MIB) for process in used.processes]
    assert told == [(4242, "VLLM::EngineCore", 71680), (4711, "/usr/bin/python3", 1280)]
    assert choose_gpus((used, idle), GpuSpec()) == (idle,)
    with pytest.raises(GpuBusyError, match="pid 4242 VLLM::EngineCore 71680 MiB, pid 4711"):
        choose_gpus((used, idle), GpuSpec(count=2))
    rows = doctor_rows(machine)
    assert (rows["GPU 0"]["state"], rows["GPU 1"]["state"]) == ("warning", "ok")
    assert "72960 MiB in use (pid 4242 VLLM::EngineCore 71680 MiB" in rows["GPU 0"]["found"]


def test_a_lost_gpu_hides_no_other() -> None:
    gpus = host_of(profile("lost")).gpus
    assert [gpu.fault for gpu in gpus] == ["", "GPU is lost", "GPU is lost"]
    assert choose_gpus(gpus, GpuSpec()) == gpus[:1]
    with pytest.raises(NoGpuError, match="GPU 1: GPU is lost"):
        choose_gpus(gpus, GpuSpec(count=2))


def test_doctor_exits_with_5_where_the_driver_does_not_answer() -> None:
    done = command(profile("version-mismatch"), "doctor")
    assert done.returncode == 5
    assert "bad      NVIDIA driver" in done.stdout
    assert "Driver/library version mismatch" in done.stdout
    assert "fix: restart the machine" in done.stdout


def test_a_fingerprint_for_people_shows_driver_and_gpus() -> None:
    shown = command(profile("t4-old-driver"), "fingerprint").stdout
    assert "  NVIDIA driver      535.104.05, CUDA 12.2\n" in shown
    assert "Tesla T4 (PCIe), 15 GiB, compute capability 7.5, 40 multiprocessors, GPU-0000000b-c0de-" in shown


def changed(machine: Profile, folder: Path, old: str, new: str) -> Profile:
    text = machine.path.read_text()
    assert old in text
    path = folder / f"changed-{os.getpid()}.txt"
    path.write_text(text.replace(old, new))
    return Profile(path)


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("capability 9.0", "capability 99.0", {"compute_capability": "99.0", "sm_count": None}),
        ("cores 16896\n", "", {"sm_count": None}),
        ("vbios 96.00.74.00.01\n", "", {"vbios": ""}),
        ("NVIDIA H100 80GB HBM3", "NVIDIA X1", {"name": "NVIDIA X1", "form": ""}),
        ("memory_mib 81559\nused_mib 1\n", "", {"memory_bytes": 0, "used_bytes": 0}),
    ],
)
def test_what_a_card_does_not_tell_is_left_empty(
    tmp_path: Path, old: str, new: str, change: dict[str, Any]
) -> None:
    machine = profile("h100-sxm")
    (gpu,) = host_of(changed(machine, tmp_path, old, new)).gpus
    assert gpu == msgspec.structs.replace(expected(described(machine)[1][0], 0), **change)


def probed(environment: dict[str, str]) -> GpuProbe:
    done = subprocess.run(
        [sys.executable, PROBE], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return msgspec.json.decode(done.stdout, type=GpuProbe)


def test_a_machine_without_nvidias_libraries_has_no_driver() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        assert probed({}) == GpuProbe(driver=None, gpus=())
    else:  # a machine with real GPUs
        pynvml.nvmlShutdown()
        assert probed({}).driver is not None


def test_the_libcuda_that_is_loaded_tells_its_own_version_and_its_count_of_multiprocessors_wins(
    tmp_path: Path,
) -> None:
    machine = changed(profile("h100-sxm"), tmp_path, "libcuda 13000", "libcuda 13010")
    machine = changed(machine, tmp_path, "sm 132", "sm 66")
    found = probed(machine.environment())
    assert found.driver == NvidiaDriver(version="580.95.05", cuda="13.0", libcuda="13.1")
    assert [gpu.sm_count for gpu in found.gpus] == [66]


def test_a_libcuda_that_does_not_start_is_a_fault_of_the_driver(tmp_path: Path) -> None:
    machine = changed(profile("h100-sxm"), tmp_path, "libcuda 13000", "libcuda 13000\ncuda_init 802")
    found = probed(machine.environment())
    assert found.driver is not None
    assert found.driver.fault == "libcuda: system not yet initialized (802)"
    assert [gpu.sm_count for gpu in found.gpus] == [132]  # from NVML


# In a container. The smallest image with Python holds no pynvml, so its module is mounted where Python looks.


@pytest.fixture
def with_pynvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test image what vLLM's image has: pynvml on PYTHONPATH."""
    original = Engine.run_tool

    def run_tool(self: Engine, *arguments: Any, mounts: Any, environment: Any, **named: Any) -> Any:
        module = Mount(source=Path(pynvml.__file__), target="/opt/env/pynvml.py")
        variables = {"PYTHONPATH": "/opt/env", **(environment or {})}
        return original(self, *arguments, mounts=[*mounts, module], environment=variables, **named)

    monkeypatch.setattr(Engine, "run_tool", run_tool)


@pytest.mark.usefixtures("with_pynvml")
def test_inside_only_the_gpu_that_was_asked_for_is_seen(engine: Engine, image: str) -> None:
    outside = host_of(profile("mixed"))
    with cdi_devices("mixed") as uuids:
        for uuid, gpu in zip(uuids, outside.gpus, strict=True):
            driver, gpus = probe_inside(engine, image, gpus=[uuid])
            assert gpus == (msgspec.structs.replace(gpu, index=0),)
            assert driver == NvidiaDriver(version="580.95.05", cuda="13.0", libcuda="13.0")
            assert cuda_class(gpus) == cuda_class([gpu])


@pytest.mark.usefixtures("with_pynvml")
def test_inside_both_of_two_gpus_are_seen(engine: Engine, image: str) -> None:
    with cdi_devices("two-h100") as uuids:
        _, gpus = probe_inside(engine, image, gpus=uuids)
    assert tuple(gpu.uuid for gpu in gpus) == uuids
    assert cuda_class(gpus).count == 2


@pytest.mark.usefixtures("with_pynvml")
def test_a_container_without_gpus_sees_no_driver(engine: Engine, image: str) -> None:
    with cdi_devices("h100-sxm"):
        assert probe_inside(engine, image, gpus=[]) == (None, ())


def test_a_gpu_gives_a_container_no_other_rights(engine: Engine, image: str) -> None:
    code = (
        "import os\n"
        "print(os.getuid(), os.listdir('/sys/class/net'), os.environ['NVIDIA_VISIBLE_DEVICES'])\n"
        "status = open('/proc/self/status')\n"
        "print([line.split()[1] for line in status if line.startswith(('CapEff', 'NoNew'))])\n"
        "try:\n    open('/usr/x', 'w')\n"
        "except OSError as error:\n    print(error.strerror)\n"
    )
    asked = {
        "NVIDIA_VISIBLE_DEVICES": "all"
    }  # as images for NVIDIA's runtime say, which would give all of them
    with cdi_devices("h100-sxm") as uuids:
        result = engine.run_tool(
            image, ["python3", "-c", code], gpus=uuids, environment=asked, user="1000:1000"
        )
    assert result.stdout.splitlines() == [
        "1000 ['lo'] void",
        "['0000000000000000', '1']",
        "Read-only file system",
    ]


def test_an_engine_that_has_no_way_to_give_the_gpu_is_told_with_the_fix(engine: Engine, image: str) -> None:
    with pytest.raises(NoGpuAccessError) as caught:
        engine.run_tool(image, ["true"], gpus=["GPU-none"])
    assert caught.value.exit_code == 5
    assert caught.value.uuids == ("GPU-none",)
    assert "nvidia-ctk cdi generate" in caught.value.fix


def test_another_error_of_the_engine_is_none_of_the_gpus(engine: Engine) -> None:
    with cdi_devices("h100-sxm") as uuids, pytest.raises(EngineCallError):
        engine.run_tool("repro-image/nothing:here", ["true"], gpus=uuids)


def test_an_image_without_pynvml_is_told(engine: Engine, image: str) -> None:
    with cdi_devices("h100-sxm") as uuids, pytest.raises(GpuProbeError) as caught:
        probe_inside(engine, image, gpus=uuids)
    assert (caught.value.reason, caught.value.image) == ("its Python has no module pynvml", image)
    assert caught.value.exit_code == 5


def test_the_gpus_are_gone_from_the_engine_afterwards(engine: Engine) -> None:
    with cdi_devices("b200") as uuids:
        assert "by CDI" in doctor_rows(profile("b200"))["GPUs in containers"]["found"]
        assert uuids == profile("b200").uuids
    for folder in engine.versions.cdi_folders:
        assert not list(Path(folder).glob("*b200*"))
