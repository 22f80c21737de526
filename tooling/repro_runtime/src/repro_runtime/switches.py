"""Choices that libraries make by measuring time, or that trade exactness for speed: all of them off."""

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from repro_runtime.notices import TooLateWarning, is_installed, warn_if_engine_is_another_process
from repro_runtime.torch_settings import Setting, read_settings, switch_off


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that is now another. name: of an environment variable, or torch's own."""

    name: str
    old: Setting
    new: Setting


@dataclass(frozen=True, slots=True)
class Switched:
    """changed: what was another before; not_done: what is still on, and what to do about it."""

    changed: tuple[Change, ...]
    not_done: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Variable:
    """value: what is set, unless one of ``kept`` is there; is_late: whether it has been read already."""

    name: str
    value: str
    kept: tuple[str, ...]
    reason: str
    is_late: Callable[[], bool]


def disable_auto_optimization() -> Switched:
    """Turn off cuDNN benchmarking, TF32, torch.compile and Triton's autotuning; return what was changed.

    torch is asked for deterministic algorithms: an operation without one then warns, and is an error where
    ``torch.use_deterministic_algorithms(True)`` is called before or after.

    Call it first thing: what a library has read already cannot be changed any more. torch is imported where
    installed, torch._dynamo with it, which takes seconds; CUDA is not started. All threads are reached, and
    processes forked later; a spawned one has the variables only. A second call changes nothing.

    Warns: TooLateWarning for a variable that comes too late, EngineProcessWarning.
    """
    before = _read_variables()
    not_done = [*_set_variables(), *_out_of_reach()]
    after = _read_variables()
    if is_installed("torch"):
        import torch

        before |= read_settings(torch)
        switch_off(torch)
        after |= read_settings(torch)
    else:
        not_done.append("torch: not installed, so that nothing of it was switched")
    warn_if_engine_is_another_process("torch's settings")
    changed = (Change(name, before[name], new) for name, new in after.items() if before[name] != new)
    return Switched(tuple(changed), tuple(not_done))


def _read_variables() -> dict[str, Setting]:
    return {variable.name: os.environ.get(variable.name) for variable in _VARIABLES}


def _set_variables() -> list[str]:
    """Set the variables that still count, and return what is to be said of the others."""
    late = []
    for variable in _VARIABLES:
        if os.environ.get(variable.name) in variable.kept:
            continue
        if variable.is_late():
            late.append(
                f"{variable.name}={variable.value} comes too late: {variable.reason}; call "
                "disable_auto_optimization before that, or set it before Python starts"
            )
            warnings.warn(late[-1], TooLateWarning, stacklevel=3)
        else:
            os.environ[variable.name] = variable.value
    return late


def _out_of_reach() -> list[str]:
    notes = []
    if is_installed("triton") and not is_installed("vllm"):
        notes.append(
            "triton: kernels with several configurations still time them; give each kernel one configuration"
        )
    if is_installed("flashinfer"):
        notes.append(
            "flashinfer: vLLM still tunes it when it starts; pass "
            'LLM(kernel_config={"enable_flashinfer_autotune": False})'
        )
    return notes


def _cuda_is_started() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _vllm_is_imported() -> bool:
    return "vllm" in sys.modules


_VARIABLES = (
    _Variable(
        # A late value would even do harm: torch takes it as proof that cuBLAS had it.
        "CUBLAS_WORKSPACE_CONFIG",
        ":4096:8",
        (":4096:8", ":16:8"),
        "CUDA is started",
        _cuda_is_started,
    ),
    _Variable("NVIDIA_TF32_OVERRIDE", "0", ("0",), "CUDA is started", _cuda_is_started),
    # Read by each torch.compile, so never late.
    _Variable("TORCHDYNAMO_DISABLE", "1", ("1",), "", lambda: False),
    # vLLM then lets every Triton kernel of the process take its first configuration that runs.
    _Variable("VLLM_TRITON_FORCE_FIRST_CONFIG", "1", ("1", "true"), "vLLM is imported", _vllm_is_imported),
)
