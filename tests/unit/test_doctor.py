import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from repro_image.cli import App, group
from repro_image.core.fingerprint import Host
from repro_image.core.ports import EngineVersions
from repro_image.errors import EngineMissingError
from repro_image.steps import doctor as doctor_step
from repro_image.steps.doctor import DoctorRow, State, examine, with_engine
from tests.unit.made_locks import make_host


@dataclass(frozen=True)
class FakeVersions:
    engine: str = "26.1.5+dfsg1"
    containerd_store: bool = True
    buildx: str | None = "v0.13.1"
    data_root: str = "/"


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
    row = rows(FakeEngine(FakeVersions(data_root=str(tmp_path / "none"))), tmp_path)["disk of the engine"]
    assert (row.state, row.found) == (State.OK, "unknown: on another machine")


def test_gpus_are_told_and_an_unnamed_processor_by_its_numbers(tmp_path: Path) -> None:
    host = replace(make_host(), gpus=({"model": "NVIDIA H100"},), cpu_name="", flags=())
    found = rows(FakeEngine(), tmp_path, host=host)
    assert found["GPU"].found == "NVIDIA H100"
    assert found["processor"].found == "GenuineIntel 6/207, no AVX2, 2 whole cores"


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
