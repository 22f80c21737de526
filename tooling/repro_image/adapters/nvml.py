"""NVIDIA's driver and GPUs of this machine, through NVML."""

import os

from repro_image.core.gpu import Gpu, NvidiaDriver, parse_probe
from repro_image.runner.gpu_probe import probe


def read_nvidia() -> tuple[NvidiaDriver | None, tuple[Gpu, ...]]:
    """Return the driver and its GPUs as NVML numbers them; (None, ()) without NVIDIA's libraries.

    libcuda is left alone: what it says counts inside the container, and it would stay initialised here.
    """
    found = parse_probe(probe(load_libcuda=False))
    return found.driver, found.gpus


def visible_devices() -> str | None:
    """Return the caller's CUDA_VISIBLE_DEVICES, with which schedulers share out a machine, or None."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")
