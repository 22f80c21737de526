import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from repro_image.cli import App, group
from repro_image.core.fingerprint import Host
from repro_image.core.gpu import Gpu, NvidiaDriver
from repro_image.core.ports import EngineVersions
from repro_image.errors import EngineMissingError
from repro_image.steps import doctor as doctor_step
from repro_image.steps.doctor import DoctorRow, State, examine, with_engine
from tests.unit.made_locks import make_host
from tests.unit.test_gpu import H100, SECOND


@dataclass(frozen=True)
class FakeVersions:
    engine: str = "26.1.5+dfsg1"
    containerd_store: bool = True
    buildx: str | None = "v0.13.1"
    folder: str | None = "/"
    cdi_folders: tuple[str, ...] = ()
    nvidia_runtime: bool = False


@dataclass(frozen=True)
class FakeEngine:
    found: FakeVersions | None = FakeVersions()

    @property
    def versions(self) -> EngineVersions:
        if self.found is None:
            raise EngineMissingError("connection refused")
        return self.found


def rows(
    engine: FakeEngine, store: Path, *, programs: bool = True, host: Host | None = None
) -> dict[str, DoctorRow]:
    def find(name: str) -> str | None:
        return f"/usr/bin/{name}" if programs else None

    return {row.what: row for row in examine(engine, host or make_host(), store=store, find_program=find)}


def test_a_suitable_machine_has_nothing_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_step, "_STORE_NEEDED_BYTES", 1)
    monkeypatch.setattr(doctor_step, "_ENGINE_NEEDED_BYTES", 1)
    found = rows(FakeEngine(), tmp_path)
    assert {row.state for row in found.values()} == {State.OK}
    assert not any(row.fix for row in found.values())
    assert found["processor"].found == "Intel(R) Xeon(R) Processor, avx512f, avx2, 2 whole cores"
    assert found["GPU"].found == "none"
    assert not {"NVIDIA driver", "container toolkit", "GPUs in containers"} & set(found)


def test_without_an_engine_its_rows_are_one_with_the_fix(tmp_path: Path) -> None:
    found = rows(FakeEngine(None), tmp_path)
    assert found["Docker Engine"].state is State.BAD
    assert "systemctl start docker" in found["Docker Engine"].fix
    assert "docker buildx" not in found


@pytest.mark.parametrize(
    ("versions", "what"),
    [
        (FakeVersions(engine="20.10.24+dfsg1"), "Docker Engine"),
        (FakeVersions(containerd_store=False), "image store"),
        (FakeVersions(buildx="v0.12.1"), "docker buildx"),
        (FakeVersions(buildx=None), "docker buildx"),
    ],
)
def test_each_unsuitable_part_of_an_engine_is_bad_and_has_a_fix(
    tmp_path: Path, versions: FakeVersions, what: str
) -> None:
    found = rows(FakeEngine(versions), tmp_path)
    assert [row.what for row in found.values() if row.state is State.BAD] == [what]
    assert found[what].fix


def test_a_version_that_cannot_be_read_is_a_warning(tmp_path: Path) -> None:
    assert rows(FakeEngine(FakeVersions(engine="dev")), tmp_path)["Docker Engine"].state is State.WARNING


def test_missing_programs_are_bad_and_name_their_package(tmp_path: Path) -> None:
    found = rows(FakeEngine(), tmp_path, programs=False)
    assert (found["mmdebstrap"].state, found["mmdebstrap"].fix) == (State.BAD, "apt-get install mmdebstrap")


def test_a_small_disk_is_a_warning_also_where_the_store_is_not_made_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_step, "_STORE_NEEDED_BYTES", 10**18)
    row = rows(FakeEngine(), tmp_path / "not/made")["disk of the store"]
    assert row.state is State.WARNING
    assert str(tmp_path) in row.fix


def test_the_disk_of_an_engine_elsewhere_is_unknown(tmp_path: Path) -> None:
    row = rows(FakeEngine(FakeVersions(folder=None)), tmp_path)["disk of the engine"]
    assert (row.state, row.found) == (State.OK, "unknown: on another machine")


def test_an_unnamed_processor_is_told_by_its_numbers(tmp_path: Path) -> None:
    found = rows(FakeEngine(), tmp_path, host=replace(make_host(), cpu_name="", flags=()))
    assert found["processor"].found == "GenuineIntel 6/207, no AVX2, 2 whole cores"


def gpu_host(*gpus: Gpu, fault: str = "", toolkit: str | None = "1.19.0") -> Host:
    driver = NvidiaDriver(version="" if fault else "580.95.05", cuda=None if fault else "13.0", fault=fault)
    return replace(make_host(), gpus=gpus, nvidia=driver, container_toolkit=toolkit)


def test_an_idle_gpu_that_the_engine_can_give_is_all_right(tmp_path: Path) -> None:
    (tmp_path / "nvidia.json").write_text(
        json.dumps({"kind": "nvidia.com/gpu", "devices": [{"name": H100.uuid}]})
    )
    engine = FakeEngine(FakeVersions(cdi_folders=(str(tmp_path),)))
    found = rows(engine, tmp_path, programs=False, host=gpu_host(H100))
    told = {name: (found[name].found, found[name].state) for name in list(found)[-4:]}
    assert told == {
        "NVIDIA driver": ("580.95.05, CUDA 13.0", State.OK),
        "GPU 0": (f"{H100.describe()}, idle", State.OK),
        "container toolkit": ("1.19.0", State.OK),
        "GPUs in containers": ("by CDI", State.OK),
    }


@pytest.mark.parametrize(
    ("runtime", "programs", "told"),
    [(True, False, "by --gpus"), (False, True, "by --gpus"), (False, False, "not at all")],
)
def test_an_engine_without_cdi_needs_nvidias_runtime_or_hook(
    tmp_path: Path, runtime: bool, programs: bool, told: str
) -> None:
    engine = FakeEngine(FakeVersions(nvidia_runtime=runtime))
    row = rows(engine, tmp_path, programs=programs, host=gpu_host(H100, toolkit=None))["GPUs in containers"]
    assert row.found == told
    assert (row.state is State.BAD) == (told == "not at all") == ("nvidia-ctk cdi generate" in row.fix)


@pytest.mark.parametrize("name", ["0", H100.uuid])
def test_a_specification_must_name_every_gpu_by_its_uuid(tmp_path: Path, name: str) -> None:
    specification = {"kind": "nvidia.com/gpu", "devices": [{"name": name}]}
    (tmp_path / "nvidia.json").write_text(json.dumps(specification))
    engine = FakeEngine(FakeVersions(cdi_folders=(str(tmp_path),)))
    row = rows(engine, tmp_path, programs=False, host=gpu_host(H100, SECOND))["GPUs in containers"]
    assert row.found == "not at all"


def test_a_missing_toolkit_is_a_warning_that_names_its_package(tmp_path: Path) -> None:
    row = rows(FakeEngine(None), tmp_path, host=gpu_host(H100, toolkit=None))["container toolkit"]
    assert (row.found, row.state) == ("none", State.WARNING)
    assert row.fix == "install the package nvidia-container-toolkit"


@pytest.mark.parametrize(
    ("fault", "fix"),
    [
        ("Driver Not Loaded", "modprobe nvidia"),
        ("Driver/library version mismatch", "restart the machine"),
        ("Insufficient Permissions", "/dev/nvidia*"),
        ("Unknown Error", "dmesg | grep NVRM"),
    ],
)
def test_a_driver_that_does_not_answer_is_bad_and_has_a_fix(tmp_path: Path, fault: str, fix: str) -> None:
    found = rows(FakeEngine(), tmp_path, host=gpu_host(fault=fault))
    assert (found["NVIDIA driver"].found, found["NVIDIA driver"].state) == (fault, State.BAD)
    assert fix in found["NVIDIA driver"].fix
    assert "GPUs in containers" not in found


@pytest.mark.parametrize(
    ("change", "state", "told", "fix"),
    [
        ({"fault": "GPU is lost"}, State.BAD, "GPU is lost", "nvidia-smi --gpu-reset"),
        ({"mig": True}, State.WARNING, "in MIG mode", "nvidia-smi -i 0 -mig 0"),
        ({"used_bytes": 2**30}, State.WARNING, "1024 MiB in use", "end what uses it"),
    ],
)
def test_a_gpu_that_no_run_can_have_says_why_and_what_to_do(
    tmp_path: Path, change: dict[str, object], state: State, told: str, fix: str
) -> None:
    row = rows(FakeEngine(), tmp_path, host=gpu_host(replace(H100, **change)))["GPU 0"]
    assert row.state is state
    assert told in row.found
    assert fix in row.fix


def test_a_fingerprint_carries_the_engine_where_one_answers() -> None:
    assert with_engine(make_host(), FakeEngine()).engine == "26.1.5+dfsg1"
    assert with_engine(make_host(), FakeEngine(None)) == make_host()


def test_the_command_exits_with_5_without_an_engine_and_works_outside_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(App, "engine", FakeEngine(None))
    result = CliRunner().invoke(group, ["--project", str(tmp_path), "doctor"])
    assert result.exit_code == 5
    assert "bad      Docker Engine" in result.stdout
    assert "no Docker Engine answers: connection refused" in result.stdout


def test_the_command_prints_one_json_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(App, "engine", FakeEngine(None))
    result = CliRunner().invoke(
        group, ["--project", str(tmp_path), "--store", str(tmp_path), "doctor", "--json"]
    )
    found = json.loads(result.stdout)
    assert found[0]["what"] == "Docker Engine"
    assert found[0]["state"] == "bad"
