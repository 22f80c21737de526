"""What these helpers cannot do, told as warnings; and which libraries are installed."""

import importlib.util
import os
import sys
import warnings


class EngineProcessWarning(RuntimeWarning):
    """vLLM's engine is, or will be, another process, which seeds and switches of this one do not reach."""


class TooLateWarning(RuntimeWarning):
    """A variable was not set, because what reads it has read it already."""


def is_installed(name: str) -> bool:
    """Return whether ``import name`` finds a package; a bare folder of that name is none."""
    if sys.modules.get(name) is not None:
        return True
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def warn_if_engine_is_another_process(what: str) -> None:
    """Warn the caller's caller that ``what`` does not reach vLLM's engine, where that is so.

    vLLM starts its engine as a process of its own unless VLLM_ENABLE_V1_MULTIPROCESSING is 0. The environment
    goes along, and nothing else that can be relied on.
    """
    if is_installed("vllm") and os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") != "0":
        warnings.warn(
            f"{what} of this process do not reach vLLM's engine, which runs in another one; set "
            "VLLM_ENABLE_V1_MULTIPROCESSING=0 before vLLM starts, or give the engine its own settings",
            EngineProcessWarning,
            stacklevel=3,
        )
