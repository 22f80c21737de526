"""What an image demands, as labels that it carries along, and back; labels are untrusted input."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from repro_image.core.compatibility import PtxKernels
from repro_image.core.demands import Demands
from repro_image.errors import InvalidLabelsError

LABEL_PREFIX = "io.github.repro-image"
_MAX_CHARACTERS = 4096

# Label below the prefix -> field of Demands.
_MACHINE = {
    "platform": "platform",
    "cpu-flags": "cpu_flags",
    "memory-gib": "memory_gib",
    "golden-memory-gib": "golden_memory_gib",
    "threads": "threads",
}
# The same for GpuDemands. `gpu.count` is always there, and tells an image for GPUs.
_GPU = {
    "cuda": "cuda",
    "driver-floor": "driver_floor",
    "capability-floor": "capability",
    "compute-capabilities": "code",
    "ptx": "ptx",
    "gpu.models": "models",
    "gpu.count": "count",
    "gpu.memory-gib": "memory_gib",
    "gpu.driver": "driver",
    "gpu.tensor-parallel": "tensor_parallel",
}
_NUMBERS = {
    "memory-gib",
    "golden-memory-gib",
    "threads",
    "gpu.count",
    "gpu.memory-gib",
    "gpu.tensor-parallel",
}
_LISTS = {"cpu-flags": " ", "compute-capabilities": " ", "ptx": " ", "gpu.models": "; "}
# PTX 8.0 that CUDA 13.0 wrote, of kernels with machine code for 7.5 and 8.0: ``8.0@13.0/7.5,8.0``.
_PTX = re.compile(r"([0-9.]{3,6})@([0-9.]{3,6})/((?:[0-9.]{3,5}[af]?(?:,[0-9.]{3,5}[af]?)*)?)")


def demand_labels(demands: Demands) -> dict[str, str]:
    """Return the labels that say what the image demands; ``parse_demands`` reads them back."""
    values = {label: getattr(demands, field) for label, field in _MACHINE.items()}
    if demands.gpu is not None:
        values |= {label: getattr(demands.gpu, field) for label, field in _GPU.items()}
    return {
        f"{LABEL_PREFIX}.{label}": _LISTS[label].join(map(_printed, value)) if label in _LISTS else str(value)
        for label, value in values.items()
        if value not in (None, ())
    }


def _printed(value: str | PtxKernels) -> str:
    if isinstance(value, str):
        return value
    return f"{value.ptx}@{value.cuda}/{','.join(value.code)}"


def parse_demands(labels: Mapping[str, str], *, reference: str) -> Demands:
    """Return what the labels say that the image demands. reference: names the image in errors.

    Raises: InvalidLabelsError for an image without labels of repro-image, or with one that it never writes.
    """
    prefix = f"{LABEL_PREFIX}."
    own = {key.removeprefix(prefix): text for key, text in labels.items() if key.startswith(prefix)}
    if not own:
        raise InvalidLabelsError(reference, reason=f"it has no label {LABEL_PREFIX}.…")
    unknown = sorted(key for key in own if key.startswith("gpu.") and key not in _GPU)
    if unknown:
        raise InvalidLabelsError(reference, reason=f"the label {prefix}{unknown[0][:100]!r} is unknown")
    fields = _fields(own, _MACHINE, reference=reference)
    if "gpu.count" in own:
        fields["gpu"] = _fields(own, _GPU, reference=reference)
    try:
        demands = msgspec.convert({**fields, "is_foreign": True}, Demands)
        SpecifierSet(demands.gpu.driver or "" if demands.gpu else "")
    except (msgspec.ValidationError, InvalidSpecifier) as error:
        raise InvalidLabelsError(reference, reason=str(error)) from error
    return demands


def _fields(own: Mapping[str, str], names: Mapping[str, str], *, reference: str) -> dict[str, Any]:
    return {field: _value(label, own[label], reference) for label, field in names.items() if label in own}


def _value(label: str, text: str, reference: str) -> Any:
    if len(text) > _MAX_CHARACTERS:
        raise InvalidLabelsError(reference, reason=f"{LABEL_PREFIX}.{label} has {len(text)} characters")
    if label in _NUMBERS:
        if not re.fullmatch(r"[0-9]{1,6}", text):
            raise InvalidLabelsError(reference, reason=f"{LABEL_PREFIX}.{label} is no number: {text[:100]!r}")
        return int(text)
    if label not in _LISTS:
        return text
    parts = text.split(_LISTS[label])
    return [_ptx(part, reference) for part in parts] if label == "ptx" else parts


def _ptx(text: str, reference: str) -> dict[str, Any]:
    match = _PTX.fullmatch(text)
    if match is None:
        raise InvalidLabelsError(reference, reason=f"{LABEL_PREFIX}.ptx holds {text[:100]!r}")
    return {"ptx": match[1], "cuda": match[2], "code": match[3].split(",") if match[3] else []}
