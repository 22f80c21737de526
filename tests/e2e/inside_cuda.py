"""Runs inside vllm-cuda with made-up NVIDIA libraries; prints what works up to a kernel's launch, as JSON."""

import json
import os
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaUtils
from triton.compiler import ASTSource
from vllm.platforms import current_platform


@triton.jit  # type: ignore[untyped-decorator]
def add_one(source, target, count, block: triton.language.constexpr):  # type: ignore[no-untyped-def]
    numbers = triton.language.program_id(0) * block + triton.language.arange(0, block)
    inside = numbers < count
    triton.language.store(
        target + numbers, triton.language.load(source + numbers, mask=inside) + 1, mask=inside
    )


# The launcher is C: Triton compiles it with gcc against Python's headers and links it to libcuda.
CudaUtils()
# A kernel: to machine code with the ptxas that Triton brings, without a GPU.
signature = {"source": "*fp32", "target": "*fp32", "count": "i32", "block": "constexpr"}
kernel = triton.compile(
    ASTSource(add_one, signature=signature, constexprs={"block": 128}), target=GPUTarget("cuda", 90, 32)
)

import vllm._C_stable_libtorch  # noqa: E402, F401  links to libcuda and to NVIDIA's libraries of the wheels

cache = Path(os.environ["TRITON_CACHE_DIR"])
print(
    json.dumps(
        {
            "platform": type(current_platform).__name__,
            "device": current_platform.get_device_name(),
            "capability": list(current_platform.get_device_capability()),
            "memory_mib": current_platform.get_device_total_memory() >> 20,
            "launchers": len(list(cache.rglob("cuda_utils*.so"))),
            "machine_code": len(kernel.asm["cubin"]) > 0,
            "user": os.getuid(),
        }
    )
)
