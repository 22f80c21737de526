"""torch's settings that decide on kernels and exactness; the names are torch's, from 2.9 on."""

import sys
from operator import attrgetter
from typing import Any, TypeAlias

Setting: TypeAlias = str | bool | None

_PRECISIONS = (
    "torch.backends",
    "torch.backends.cuda.matmul",
    "torch.backends.cudnn.conv",
    "torch.backends.cudnn.rnn",
    "torch.backends.mkldnn.matmul",
    "torch.backends.mkldnn.conv",
    "torch.backends.mkldnn.rnn",
)
_DEBUG_MODES = ("default", "warn", "error")


def read_settings(torch: Any) -> dict[str, Setting]:
    """Return the settings by name. Reading them starts no CUDA and imports nothing."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return {
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        "torch.backends.cudnn.deterministic": torch.backends.cudnn.deterministic,
        **{f"{name}.fp32_precision": _find(torch, name).fp32_precision for name in _PRECISIONS},
        "torch.get_deterministic_debug_mode": _DEBUG_MODES[torch.get_deterministic_debug_mode()],
        "torch.compiler.set_stance": dynamo._stance.stance if dynamo else "default",
    }


def switch_off(torch: Any) -> None:
    """Turn off benchmarking, TF32 and torch.compile; ask for deterministic algorithms."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # The older names first: torch refuses to read them once only the newer ones have been set.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    for name in _PRECISIONS:
        _find(torch, name).fp32_precision = "ieee"
    if torch.get_deterministic_debug_mode() == 0:  # who asked for errors keeps them
        torch.use_deterministic_algorithms(True, warn_only=True)
    # Unlike TORCHDYNAMO_DISABLE it also reaches functions that are compiled already, and in every thread.
    torch.compiler.set_stance("force_eager")


def _find(torch: Any, name: str) -> Any:
    return attrgetter(name.removeprefix("torch."))(torch)
