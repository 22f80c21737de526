"""What this process really runs on, as plain values: what a result has to be filed with."""

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any, TypedDict

from repro_runtime.torch_settings import Setting, read_settings

_PACKAGES = re.compile(
    r"numpy|scipy|torch|triton|vllm(-cpu)?|transformers|tokenizers|safetensors|xformers|flash-attn|flashinfer-.*|"
    r"nvidia-.*|cuda-.*|intel-.*|mkl|tbb|repro-runtime"
)
# Instruction sets that numeric libraries choose their kernels by.
_FLAGS = ("amx", "avx", "f16c", "fma", "sse", "ssse", "asimd", "sve", "bf16", "i8mm")
# Variables that can change numbers; of these, what names a place or a secret is left out.
_NUMERIC = re.compile(
    r"(VLLM|OMP|GOMP|KMP|MKL|OPENBLAS|ONEDNN|DNNL|TORCH|TORCHDYNAMO|TORCHINDUCTOR|PYTORCH|ATEN|CUBLAS|CUDNN|CUDA|NCCL|"
    r"TRITON|FLASHINFER|NVIDIA_TF32)_.*|PYTHONHASHSEED|LD_PRELOAD|GLIBC_TUNABLES"
)
_PLACE_OR_SECRET = re.compile(
    r".*(_ROOT|_DIR|_PATH|_HOME|_CACHE|_PORT|_IP|_HOST|_URL|_ENDPOINT|_TOKEN|_SECRET|_KEY|_PASSWORD)"
)


class Python(TypedDict):
    """hash_seed: PYTHONHASHSEED, or ``random`` where every process orders sets in its own way."""

    implementation: str
    version: str
    hash_seed: str


class Platform(TypedDict):
    """kernel: its release; libc: name and version, empty where it is not glibc."""

    system: str
    kernel: str
    machine: str
    libc: str


class Cpu(TypedDict):
    """As /proc/cpuinfo tells the first processor, empty where there is none.

    flags:   instruction sets that numeric libraries dispatch on, sorted.
    allowed: processors that this process may use.
    """

    vendor: str
    family: str
    model: str
    name: str
    flags: list[str]
    allowed: int


class Torch(TypedDict):
    """cuda: what torch was built for, or None; capability: the instruction set of its CPU kernels."""

    version: str
    cuda: str | None
    capability: str
    threads: int
    interop_threads: int
    settings: dict[str, Setting]


class Gpu(TypedDict):
    """compute_capability: such as ``9.0``; sm_count: multiprocessors, which kernels size their work by."""

    name: str
    compute_capability: str
    sm_count: int
    memory_bytes: int


class Fingerprint(TypedDict):
    """What ``fingerprint`` returns.

    packages:    versions of the numeric ones that are installed.
    environment: variables that can change numbers.
    torch:       None until something has imported it.
    gpus:        empty until torch has started CUDA.
    """

    format: int
    python: Python
    platform: Platform
    cpu: Cpu
    packages: dict[str, str]
    environment: dict[str, str]
    torch: Torch | None
    gpus: list[Gpu]


def fingerprint() -> Fingerprint:
    """Return what this process runs on at this moment; ``json.dumps`` takes it as it is.

    It imports nothing and starts nothing, so call it after the work has begun: torch's part is there once
    torch is imported, the GPUs once CUDA is started. It holds no time, host name or user.
    """
    torch = sys.modules.get("torch")
    return {
        "format": 1,
        "python": {
            "implementation": platform.python_implementation(),
            "version": platform.python_version(),
            "hash_seed": _hash_seed(),
        },
        "platform": {
            "system": platform.system(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "libc": " ".join(platform.libc_ver()).strip(),
        },
        "cpu": _cpu(),
        "packages": _packages(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if _NUMERIC.fullmatch(name) and not _PLACE_OR_SECRET.fullmatch(name)
        },
        "torch": _torch(torch) if torch else None,
        "gpus": _gpus(torch) if torch else [],
    }


def _hash_seed() -> str:
    if not sys.flags.hash_randomization:
        return "0"
    seed = "" if sys.flags.ignore_environment else os.environ.get("PYTHONHASHSEED", "")
    return seed or "random"


def _cpu() -> Cpu:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    fields = {key.strip().lower(): value.strip() for key, _, value in lines}
    flags = fields.get("flags") or fields.get("features", "")
    return {
        "vendor": fields.get("vendor_id") or fields.get("cpu implementer", ""),
        "family": fields.get("cpu family") or fields.get("cpu architecture", ""),
        "model": fields.get("model") or fields.get("cpu part", ""),
        "name": fields.get("model name", ""),
        "flags": sorted({flag for flag in flags.split() if flag.startswith(_FLAGS)}),
        "allowed": len(os.sched_getaffinity(0)),
    }


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        if not distribution.name:  # what a removal that was cut short leaves: a folder without METADATA
            continue
        name = re.sub(r"[-_.]+", "-", distribution.name).lower()
        if _PACKAGES.fullmatch(name):
            found.setdefault(name, distribution.version)  # the first on the path is the one that is imported
    return dict(sorted(found.items()))


def _torch(torch: Any) -> Torch:
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "settings": read_settings(torch),
    }


def _gpus(torch: Any) -> list[Gpu]:
    if not torch.cuda.is_initialized():
        return []
    devices = (torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count()))
    return [
        {
            "name": device.name,
            "compute_capability": f"{device.major}.{device.minor}",
            "sm_count": device.multi_processor_count,
            "memory_bytes": device.total_memory,
        }
        for device in devices
    ]
