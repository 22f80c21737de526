"""Looks at NVIDIA's driver and GPUs, of a machine or from inside a container.

usage: python gpu_probe.py

Prints one JSON line, a GpuProbe (repro_image/core/gpu.py has its form). Needs the standard library and pynvml
(nvidia-ml-py), which vLLM brings along. What a driver or a card does not tell is left empty; nothing that
they answer is an error.
"""

import ctypes
import json
import re
import sys
import uuid
from typing import Any

# FP32 cores of one multiprocessor by compute capability.
# Source: NVIDIA/cuda-samples, Common/helper_cuda.h, _ConvertSMVer2Cores
_CORES_PER_SM = dict.fromkeys([(7, 0), (7, 2), (7, 5), (8, 0)], 64) | dict.fromkeys(
    [(8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 1), (10, 3), (11, 0), (12, 0), (12, 1)], 128
)
# NVML has no query for a card's form. Its name tells it, by NVIDIA's data sheets.
_SXM = re.compile(r"SXM|H100 80GB HBM3|H200$|B200$|B300$")
_PCIE = re.compile(r"PCIe|PCIE|NVL|GeForce|RTX|Tesla T4|L4$|L40S?$|A10G?$|A30$")

_MULTIPROCESSOR_COUNT = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT


def probe(*, load_libcuda: bool) -> dict[str, Any]:
    """Return {"driver": NvidiaDriver or None, "gpus": [Gpu, ...]} as plain values.

    load_libcuda: also ask the libcuda that a CUDA program here gets. It initialises CUDA in this process.
    """
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return {"driver": None, "gpus": []}
    import pynvml

    multiprocessors: dict[str, int] = {}
    libcuda: dict[str, Any] = {}
    if load_libcuda:
        libcuda, multiprocessors = _libcuda()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        driver = {"version": "", "cuda": None, **libcuda, "fault": _words(pynvml, error)}
        return {"driver": driver, "gpus": []}
    try:
        asker = _Asker(pynvml)
        driver = {
            "version": asker("", pynvml.nvmlSystemGetDriverVersion),
            "cuda": _major_minor(asker(0, pynvml.nvmlSystemGetCudaDriverVersion)),
            **libcuda,
        }
        count = asker(0, pynvml.nvmlDeviceGetCount)
        return {"driver": driver, "gpus": [_gpu(pynvml, index, multiprocessors) for index in range(count)]}
    finally:
        pynvml.nvmlShutdown()


class _Asker:
    """Calls NVML's functions. fault: words of the first answer that means that the GPU is gone."""

    def __init__(self, nvml: Any) -> None:
        self.nvml, self.fault = nvml, ""
        self.lost = (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED, nvml.NVML_ERROR_UNKNOWN)

    def __call__(self, default: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        """Return the answer, or ``default`` where there is none."""
        try:
            return function(*arguments, **named)
        except UnicodeDecodeError:  # the name of a process may be any bytes
            return default
        except self.nvml.NVMLError as error:
            if error.value in self.lost:
                self.fault = self.fault or _words(self.nvml, error)
            return default


def _gpu(nvml: Any, index: int, multiprocessors: dict[str, int]) -> dict[str, Any]:
    """Return one Gpu. index: NVML's, which follows the PCI bus."""
    unreadable = {"index": index, "uuid": "", "name": "", "compute_capability": None, "memory_bytes": 0}
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return {**unreadable, "fault": _words(nvml, error)}
    asker = _Asker(nvml)
    name, serial = asker("", nvml.nvmlDeviceGetName, handle), asker("", nvml.nvmlDeviceGetUUID, handle)
    capability = asker((0, 0), nvml.nvmlDeviceGetCudaComputeCapability, handle)
    cores = asker(0, nvml.nvmlDeviceGetNumGpuCores, handle)
    by_cores = cores // _CORES_PER_SM[capability] if capability in _CORES_PER_SM else 0
    memory = _memory(asker, handle)
    ecc = asker(None, nvml.nvmlDeviceGetEccMode, handle)
    mig = asker(None, nvml.nvmlDeviceGetMigMode, handle)
    processes = [
        {
            "pid": process.pid,
            "used_bytes": process.usedGpuMemory or 0,
            "name": asker("", nvml.nvmlSystemGetProcessName, process.pid),
        }
        for process in asker([], nvml.nvmlDeviceGetComputeRunningProcesses_v3, handle)
    ]
    if asker.fault:
        return {**unreadable, "uuid": serial, "name": name, "fault": asker.fault}
    return {
        "index": index,
        "uuid": serial,
        "name": name,
        "compute_capability": f"{capability[0]}.{capability[1]}" if capability[0] else None,
        **memory,
        "sm_count": multiprocessors.get(serial) or by_cores or None,
        "form": "SXM" if _SXM.search(name) else "PCIe" if _PCIE.search(name) else "",
        "ecc": bool(ecc[0]) if ecc else None,
        "mig": bool(mig[0]) if mig else None,
        "vbios": asker("", nvml.nvmlDeviceGetVbiosVersion, handle),
        "processes": processes,
    }


def _memory(asker: _Asker, handle: Any) -> dict[str, int]:
    """Return total and used; the first form of the query counts what the driver keeps for itself as used."""
    nvml = asker.nvml
    found = asker(None, nvml.nvmlDeviceGetMemoryInfo, handle, version=nvml.nvmlMemory_v2)
    found = found or asker(None, nvml.nvmlDeviceGetMemoryInfo, handle)
    return {"memory_bytes": found.total if found else 0, "used_bytes": found.used if found else 0}


def _libcuda() -> tuple[dict[str, Any], dict[str, int]]:
    """Return libcuda's part of NvidiaDriver, and the multiprocessors of each GPU by UUID."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {}, {}
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    told: dict[str, Any] = {"libcuda": _major_minor(number.value)}
    code = cuda.cuInit(0)
    if code:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        return {**told, "fault": f"libcuda: {(text.value or b'error').decode()} ({code})"}, {}
    found: dict[str, int] = {}
    cuda.cuDeviceGetCount(ctypes.byref(number))
    for ordinal in range(number.value):
        device, count, raw = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(16)
        answers = (
            cuda.cuDeviceGet(ctypes.byref(device), ordinal),
            cuda.cuDeviceGetAttribute(ctypes.byref(count), _MULTIPROCESSOR_COUNT, device),
            cuda.cuDeviceGetUuid_v2(raw, device),
        )
        if not any(answers):
            found[f"GPU-{uuid.UUID(bytes=raw.raw)}"] = count.value
    return told, found


def _major_minor(number: int) -> str | None:
    """Return ``13.0`` for NVIDIA's 13000."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _words(nvml: Any, error: Any) -> str:
    """Return the library's own words; pynvml's differ."""
    text = nvml.nvmlErrorString(error.value)
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def main() -> int:
    try:
        print(json.dumps(probe(load_libcuda=True)))
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
