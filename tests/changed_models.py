"""The locked model with one change, of the kind that happens to models: a folder for ``verify --model``."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from repro_image.adapters.store import Store
from tests.scratch import Scratch

Matrix = npt.NDArray[np.float32]

_NORM = "model.norm.weight"


class ChangedModel:
    """A copy of the locked model in ``folder``, to be changed file by file."""

    def __init__(self, scratch: Scratch, folder: Path) -> None:
        self.folder = folder
        store = Store(scratch.store)
        for path, digest in model_files(scratch).items():
            shutil.copyfile(store.path(digest), folder / path)

    def change_json(self, name: str, change: Callable[[Any], object]) -> "ChangedModel":
        """Let ``change`` edit the parsed file in place."""
        path = self.folder / name
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value, ensure_ascii=False))
        return self

    def change_tensors(self, change: Callable[[str, Matrix], Matrix | None]) -> "ChangedModel":
        """Store what ``change`` makes of each tensor's values; None leaves a tensor as it is."""
        path = self.folder / "model.safetensors"
        data = np.memmap(path, dtype=np.uint8, mode="r+")
        length = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + length].tobytes())
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (8 + length + offset for offset in entry["data_offsets"])
                assert entry["dtype"] == "BF16"
                stored = data[start:end].view(np.uint16).reshape(entry["shape"])
                changed = change(name, _widened(stored))
                if changed is not None:
                    stored[...] = _rounded(changed)
        data.flush()
        return self


def model_files(scratch: Scratch) -> dict[str, str]:
    """Path in the model folder -> digest, as model.json locks it."""
    lock = json.loads((scratch.locks / "model.json").read_text())
    return {file["path"]: file["sha256"] for file in lock["files"]}


def _widened(stored: npt.NDArray[np.uint16]) -> Matrix:
    return (stored.astype(np.uint32) << 16).view(np.float32)


def _rounded(values: Matrix) -> npt.NDArray[np.uint16]:
    """Return bfloat16, to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def flip_one_bit(model: ChangedModel) -> None:
    """Flip the lowest bit of one weight in the last tensor: the header is at the beginning."""
    path = model.folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1002] ^= 1
    path.write_bytes(data)


def round_to_int8(model: ChangedModel) -> None:
    """Round every matrix to int8 with a scale per row, and back to the stored type."""

    def change(_: str, values: Matrix) -> Matrix | None:
        if values.ndim < 2:
            return None
        scale = np.abs(values).max(axis=1, keepdims=True) / 127
        rounded: Matrix = np.round(values / scale) * scale
        return rounded

    model.change_tensors(change)


def put_one_nan(model: ChangedModel) -> None:
    """Make one scale of the last normalisation NaN, as a run of training that went wrong leaves it."""

    def change(name: str, values: Matrix) -> Matrix | None:
        if name != _NORM:
            return None
        values[0] = np.nan
        return values

    model.change_tensors(change)


def forget_merges(model: ChangedModel) -> None:
    """Drop the tokenizer's most used merges: a space and the letter after it become two tokens."""
    model.change_json(
        "tokenizer.json", lambda tokenizer: tokenizer["model"]["merges"].__delitem__(slice(0, 2))
    )


def reword_chat_template(model: ChangedModel) -> None:
    """Give the assistant another name in the system prompt that the chat template adds."""

    def change(settings: Any) -> None:
        template = settings["chat_template"]
        assert "named SmolLM" in template
        settings["chat_template"] = template.replace("named SmolLM", "named SmolLM2")

    model.change_json("tokenizer_config.json", change)


def shorten_rotations(model: ChangedModel) -> None:
    """Give the rotary embedding another base: the weights are the same, the model is another one."""

    def change(settings: Any) -> None:
        settings["rope_theta"] = settings["rope_parameters"]["rope_theta"] = 10.0

    model.change_json("config.json", change)
