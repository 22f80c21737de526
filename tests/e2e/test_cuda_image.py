"""The real vllm-cuda image, up to a kernel's launch: built from the committed locks, made-up GPUs inside.

Tens of gigabytes and minutes: run by hand with `make large`, and by the nightly workflow.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from repro_image.adapters.engine import Engine, Mount
from repro_image.adapters.gpu_container import probe_inside
from repro_image.adapters.store import Store
from repro_image.core.fingerprint import CudaClass, cuda_class
from tests.fake_gpu import cdi_devices, profile
from tests.scratch import Scratch, docker

pytestmark = [pytest.mark.large, pytest.mark.docker, pytest.mark.timeout(3600)]

IMAGE = "vllm-cuda"
SCRIPT = Path(__file__).with_name("inside_cuda.py")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[str]:
    """The image, built as on any machine: without a GPU and without a golden run."""
    project = Scratch(tmp_path_factory.mktemp("cuda"), store.root, IMAGE)
    settings = project.folder / "pyproject.toml"
    settings.write_text(
        settings.read_text().replace('repository = "repro-image"', 'repository = "repro-image-test"')
    )
    found = project.run("build", IMAGE, "--no-golden", "--json", timeout_s=3000)
    assert found.code == 0, found.err
    yield found.json[0]["reference"]
    docker("image", "rm", "--force", found.json[0]["reference"])


def test_vllm_finds_its_platform_and_triton_compiles_launcher_and_kernel(built: str) -> None:
    with cdi_devices("h100-sxm") as uuids:
        result = Engine().run_tool(
            built,
            ["python3", "/test/inside_cuda.py"],
            mounts=[Mount(source=SCRIPT, target="/test/inside_cuda.py")],
            # The made-up libcuda is mounted without the hook that would enter it into ld.so.cache.
            environment={"TRITON_LIBCUDA_PATH": "/usr/lib/x86_64-linux-gnu"},
            gpus=uuids,
            user="1000:1000",
            timeout_s=300,
        )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "platform": "NvmlCudaPlatform",
        "device": "NVIDIA H100 80GB HBM3",
        "capability": [9, 0],
        "memory_mib": 81559,
        "launchers": 1,
        "machine_code": True,
        "user": 1000,
    }


@pytest.mark.parametrize(("machine", "multiprocessors"), [("h100-sxm", 132), ("h100-pcie", 114)])
def test_the_image_itself_tells_the_gpu_apart(built: str, machine: str, multiprocessors: int) -> None:
    with cdi_devices(machine) as uuids:
        driver, gpus = probe_inside(Engine(), built, gpus=uuids)
    assert driver is not None
    assert driver.libcuda == "13.0"
    numeric_class = cuda_class(gpus)
    assert isinstance(numeric_class, CudaClass)
    assert numeric_class.sm_count == multiprocessors


def test_check_reads_the_demands_of_the_built_image(built: str, tmp_path: Path, store: Store) -> None:
    project = Scratch(tmp_path, store.root, IMAGE)
    good = project.run("check", built, "--json", environment=profile("h100-sxm").environment())
    assert good.code == 0, good.out
    bad = project.run("check", built, environment=profile("t4-old-driver").environment())
    assert bad.code == 4
    assert "driver floor" in bad.out
