"""Machines with GPUs and the image that demands them, made by hand."""

from msgspec.structs import replace

from repro_image.adapters.shipped import compatibility_tables
from repro_image.core.demands import Demands, GpuDemands, demands_of
from repro_image.core.finding import Finding
from repro_image.core.fingerprint import Host
from repro_image.core.gpu import Gpu, NvidiaDriver
from repro_image.core.lockfile import Locks
from repro_image.core.project import GpuSpec, ImageSpec, parse_image
from tests.unit.made_locks import ROOT, make_host, make_locks

TABLES = compatibility_tables()
DRIVER = NvidiaDriver(version="580.95.05", cuda="13.0")
H100 = Gpu(
    index=0, uuid="GPU-0", name="NVIDIA H100 80GB HBM3", compute_capability="9.0", memory_bytes=81559 * 2**20
)
A100 = replace(
    H100, name="NVIDIA A100-SXM4-80GB", compute_capability="8.0", memory_bytes=81920 * 2**20, uuid="GPU-A"
)
L4 = replace(H100, name="NVIDIA L4", compute_capability="8.9", memory_bytes=23034 * 2**20, uuid="GPU-L")
T4 = replace(H100, name="Tesla T4", compute_capability="7.5", memory_bytes=15360 * 2**20, uuid="GPU-T")
RTX_4090 = replace(
    H100, name="NVIDIA GeForce RTX 4090", compute_capability="8.9", memory_bytes=24564 * 2**20, uuid="GPU-R"
)
WHEELS = (
    "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl",
    "vllm-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl",
    "nvidia_cuda_runtime-13.0.96-py3-none-manylinux_2_27_x86_64.whl",
    "nvidia_cuda_nvcc-13.0.88-py3-none-manylinux_2_27_x86_64.whl",
)


def cuda_image(**gpu: object) -> ImageSpec:
    """Return image.toml of vllm-cuda, as this repository ships it, with this ``[gpu]``."""
    path = ROOT / "images/vllm-cuda/image.toml"
    image = parse_image(path.read_text(encoding="utf-8"), path=str(path))
    return replace(image, gpu=replace(GpuSpec(), **gpu))


def cuda_locks(*changed: str) -> Locks:
    """Return locks of WHEELS. changed: wheels that take the place of those of the same project."""
    names = {filename.partition("-")[0] for filename in changed}
    return make_locks(*(wheel for wheel in WHEELS if wheel.partition("-")[0] not in names), *changed)


def gpu_host(*gpus: Gpu, driver: NvidiaDriver | None = DRIVER, toolkit: str | None = "1.19.1") -> Host:
    """Return a machine with these GPUs, numbered in order."""
    numbered = tuple(replace(gpu, index=index) for index, gpu in enumerate(gpus))
    return replace(make_host(), gpus=numbered, nvidia=driver, container_toolkit=toolkit)


def cuda_demands(**changes: object) -> Demands:
    """Return what the image and its locks demand. changes: fields of GpuDemands."""
    demands = demands_of(cuda_image(), cuda_locks(), TABLES)
    assert isinstance(demands.gpu, GpuDemands)
    return replace(demands, gpu=replace(demands.gpu, **changes))


def by_rule(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    """Return the findings by rule; no rule is found twice."""
    rules = {finding.rule: finding for finding in findings}
    assert len(rules) == len(findings)
    return rules
