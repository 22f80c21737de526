"""`repro-image check` as a program, on machines with GPUs that are not there, and with real images."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from repro_image.adapters.files import Project
from repro_image.adapters.store import Store
from repro_image.cli import default_store
from repro_image.core.image_labels import demand_labels
from tests.fake_gpu import Profile, profile
from tests.unit.made_hosts import TABLES, cuda_demands
from tests.unit.made_locks import ROOT
from wheel_kernels import WHEELS, read_wheel

PROGRAM = Path(sys.executable).with_name("repro-image")


def check(machine: Profile, *arguments: str, folder: Path = ROOT) -> tuple[int, dict[str, str], str]:
    """Return the exit code, rule -> level of all rules that are not met, and stderr."""
    run = subprocess.run(
        [PROGRAM, "check", *arguments, "--json"],
        env={**os.environ, **machine.environment()},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    images = json.loads(run.stdout) if run.stdout else []
    findings = [finding for image in images for finding in image["findings"]]
    # Any machine may run this test, with any container toolkit and as much memory as it has.
    others = (
        "platform",
        "constraints.memory_gib",
        "golden.memory_gib",
        "golden.threads",
        "container toolkit",
    )
    unmet = {f["rule"]: f["level"] for f in findings if f["level"] != "ok" and f["rule"] not in others}
    return run.returncode, unmet, run.stderr


@pytest.mark.parametrize(
    ("machine", "unmet"),
    [
        ("h100-sxm", {}),
        ("h100-pcie", {}),
        ("h100-nvl", {}),
        ("h200", {}),
        ("a100-40gb", {}),
        ("a100-80gb", {}),
        ("l4", {}),
        ("l40s", {}),
        ("rtx4090", {}),
        ("b200", {}),
        ("two-h100", {}),
        ("busy", {}),
        ("mixed", {"gpu.count": "warning"}),
        ("lost", {"GPU health": "warning"}),
        ("mig", {"MIG": "error", "gpu.count": "error"}),
        (
            "t4-old-driver",
            {"driver floor": "error", "compute capability": "error", "gpu.count": "error"},
        ),
        ("driver-not-loaded", {"NVIDIA driver": "error"}),
        ("version-mismatch", {"NVIDIA driver": "error"}),
    ],
)
def test_a_machine_is_told_what_it_lacks_for_the_shipped_image(machine: str, unmet: dict[str, str]) -> None:
    code, found, _ = check(profile(machine), "vllm-cuda")
    assert found == unmet
    assert code == 4 or "error" not in unmet.values()


def test_a_recorded_machine_is_judged_like_the_machine_itself(tmp_path: Path) -> None:
    host = tmp_path / "t4.json"
    recorded = subprocess.run(
        [PROGRAM, "fingerprint", "--json"],
        env={**os.environ, **profile("t4-old-driver").environment()},
        capture_output=True,
        check=True,
        timeout=60,
    )
    host.write_bytes(recorded.stdout)
    code, found, _ = check(profile("h100-sxm"), "vllm-cuda", "--host", str(host))
    assert (code, found) == check(profile("t4-old-driver"), "vllm-cuda")[:2]
    assert code == 4


@pytest.mark.large
def test_the_rows_of_the_locked_wheels_are_what_the_wheels_say() -> None:
    subprocess.run([PROGRAM, "fetch", "vllm-cuda"], cwd=ROOT, check=True, timeout=3600)
    store = Store(default_store())
    for wheel in Project(ROOT).requirements_lock("vllm-cuda").wheels:
        if wheel.name in WHEELS:
            row = TABLES.wheel_row(wheel)
            assert row is not None
            assert row == read_wheel(store.path(wheel.sha256), filename=wheel.filename, today=row.read)


@pytest.fixture
def reference(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an empty image with the labels of the shipped one, and variables of the test's choice."""
    name = f"repro-image-test/labelled:{uuid.uuid4().hex[:12]}"
    labels = [f"LABEL {key}={json.dumps(text)}" for key, text in demand_labels(cuda_demands()).items()]
    lines = [part for line in (*labels, *request.param) for part in ("--change", line)]
    empty = b"\0" * 10240  # a tar without members
    subprocess.run(["docker", "import", *lines, "-", name], input=empty, capture_output=True, check=True)
    yield name
    subprocess.run(["docker", "rmi", "--force", name], capture_output=True, check=True)


@pytest.mark.docker
@pytest.mark.parametrize("reference", [[]], indirect=True)
def test_an_image_of_the_engine_says_itself_what_it_demands(reference: str, tmp_path: Path) -> None:
    assert check(profile("h100-sxm"), reference, folder=tmp_path)[1] == {}
    code, found, _ = check(profile("t4-old-driver"), reference, folder=tmp_path)
    assert code == 4
    assert found == check(profile("t4-old-driver"), "vllm-cuda")[1]


@pytest.mark.docker
@pytest.mark.parametrize("reference", [["ENV LD_PRELOAD=/x.so"]], indirect=True)
def test_an_image_that_brings_a_preload_along_is_refused(reference: str, tmp_path: Path) -> None:
    code, found, _ = check(profile("h100-sxm"), reference, folder=tmp_path)
    assert (code, found) == (4, {"LD_* of the image": "error"})


@pytest.mark.docker
@pytest.mark.parametrize("reference", [["LABEL io.github.repro-image.gpu.count=two"]], indirect=True)
def test_an_image_with_a_label_that_we_never_write_is_refused(reference: str, tmp_path: Path) -> None:
    code, _, told = check(profile("h100-sxm"), reference, folder=tmp_path)
    assert code == 3
    assert f"where: labels of {reference}" in told


@pytest.mark.docker
def test_an_image_that_is_not_on_this_machine_is_named(tmp_path: Path) -> None:
    code, _, told = check(profile("h100-sxm"), "repro-image-test/none:1", folder=tmp_path)
    assert code == 5
    assert "the image repro-image-test/none:1 is not on this machine" in told
