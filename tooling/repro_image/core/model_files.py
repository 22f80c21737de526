"""Which files of a model are taken, and which models are refused: one set of rules, wherever they lie.

Nothing of a model runs before these rules have seen it: its files' names, and the text of its JSON files.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from typing import Any

from repro_image.core.project import is_relative_path
from repro_image.errors import UnsafeModelError

# What vLLM reads of a folder, and nothing below other folders: weights, settings, tokenizer, chat template.
_WANTED = (
    *("*.safetensors", "*.json", "*.jinja", "*.tiktoken", "*.model", "tokenizer.model.*"),
    *("merges.txt", "vocab.txt"),
)
_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
# Weights as pickle run code when they are loaded, as Python and machine code does; safetensors cannot.
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_CODE = (*_PICKLES, ".py", ".pyc", ".so")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model*", "tekken.json", "vocab.json", "vocab.txt", "*.tiktoken")

Read = Callable[[str], bytes]


def choose_files(
    paths: Collection[str], patterns: Collection[str], *, where: str, read: Read
) -> tuple[str, ...]:
    """Return which of a repository's files make the model, sorted.

    patterns: of image.toml; empty: what vLLM needs, each weight once.
    where:    the repository, for messages.
    read:     returns the content of one of ``paths``; called for the weights' index only.
    Raises: UnsafeModelError for what `refuse_unsafe` refuses as well, before anything but the index is read.
    """
    for path in sorted(paths):
        if not all(part.isprintable() and part not in ("", ".", "..") for part in path.split("/")):
            raise UnsafeModelError(where, reason=f"the path {path[:100]!r} could lead out of its folder")
    chosen = {path for path in paths if _matches(path, patterns or _WANTED)}
    if not patterns:
        chosen -= {path for path in chosen if _is_left_out(path)}
    for path in sorted(chosen):
        if not is_relative_path(path):
            raise UnsafeModelError(
                where, reason=f"the path {path[:100]!r} has characters that a lock may not have"
            )
    _refuse_pickles_alone(paths, chosen, where=where)
    _refuse_names(chosen, where=where)
    return tuple(sorted(chosen if patterns else chosen - _doubled(chosen, where=where, read=read)))


def refuse_unsafe(paths: Collection[str], *, where: str, read: Read) -> None:
    """Raise UnsafeModelError for a model that asks to run code of its own, or that is not whole.

    paths: of all files, below the model's folder.
    where: the folder or repository, for messages.
    read:  returns the content of one of ``paths``; called for JSON files only.
    """
    _refuse_names(paths, where=where)
    for path in sorted(path for path in paths if path.endswith(".json")):
        fields = _parse(read(path), where=f"{where}/{path}")
        if "auto_map" in fields:
            raise UnsafeModelError(f"{where}/{path}", reason="`auto_map` asks to run the model's own code")
        if path.endswith(".safetensors.index.json"):
            absent = sorted(_indexed(fields, where=f"{where}/{path}") - set(paths))
            if absent:
                reason = f"it names files that are not there: {_listed(absent)}"
                raise UnsafeModelError(f"{where}/{path}", reason=reason)


def _refuse_names(paths: Collection[str], *, where: str) -> None:
    for path in sorted(paths):
        if path.lower().endswith(_CODE):
            raise UnsafeModelError(
                f"{where}/{path}", reason="files of this kind run code when they are loaded"
            )
    if "config.json" not in paths:
        raise UnsafeModelError(where, reason="there is no config.json")
    if not any(_matches(path, ("*.safetensors",)) for path in paths):
        raise UnsafeModelError(where, reason="there are no weights in safetensors")
    if not any(_matches(path, _TOKENIZERS) for path in paths):
        raise UnsafeModelError(where, reason="there is no tokenizer")


def _refuse_pickles_alone(paths: Iterable[str], chosen: Iterable[str], *, where: str) -> None:
    pickles = sorted(path for path in paths if path.lower().endswith(_PICKLES))
    if pickles and not any(path.endswith(".safetensors") for path in chosen):
        reason = f"its weights are pickles, which run code when they are loaded: {_listed(pickles)}"
        raise UnsafeModelError(where, reason=reason)


def _is_left_out(path: str) -> bool:
    """Tell whether a JSON file is the index of weights in another form, which is not taken."""
    return path.endswith(".index.json") and not path.endswith(".safetensors.index.json")


def _doubled(chosen: Collection[str], *, where: str, read: Read) -> set[str]:
    """Return the weights that the repository has a second time, in another layout: vLLM would read both."""
    weights = {path for path in chosen if path.endswith(".safetensors")}
    if _INDEX in chosen:
        at = f"{where}/{_INDEX}"
        used, index = _indexed(_parse(read(_INDEX), where=at), where=at), _INDEX
    elif _WHOLE in weights:
        used, index = {_WHOLE}, None
    else:
        return set()
    others = {path for path in chosen if path.endswith(".safetensors.index.json") and path != index}
    return (weights - used) | others


def _indexed(fields: dict[str, Any], *, where: str) -> set[str]:
    """Return the files that an index of weights names."""
    names = fields.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UnsafeModelError(where, reason="it is no index of weights: it has no `weight_map` to files")
    return set(names.values())


def _parse(data: bytes, *, where: str) -> dict[str, Any]:
    """Return the fields of a JSON object; of another value, none."""
    try:
        fields = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsafeModelError(where, reason=f"not JSON: {error}") from error
    return fields if isinstance(fields, dict) else {}


def _matches(path: str, patterns: Iterable[str]) -> bool:
    """Tell whether one of the patterns fits; ``*`` stays within one folder."""
    parts = path.split("/")
    for pattern in patterns:
        wanted = pattern.split("/")
        if len(wanted) == len(parts) and all(map(fnmatchcase, parts, wanted)):
            return True
    return False


def _listed(paths: Collection[str]) -> str:
    shown = ", ".join(re.sub(r"[^ -~]", "?", path[:100]) for path in list(paths)[:3])
    return f"{shown} and {len(paths) - 3} more" if len(paths) > 3 else shown
