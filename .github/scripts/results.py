"""What repro-image said -> outputs of the action, lines of the job's summary, words for its scripts.

Like all scripts of this folder: for any Python since 3.11, with the standard library only.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tables import table, visible

_EXIT_MEANS = {
    "1": "a bug in repro-image",
    "2": "usage",
    "3": "project, lock or model invalid or stale",
    "4": "a constraint is broken",
    "5": "engine, registry, network or disk",
    "6": "the ledger is broken",
}


def result(command: str, code: str, reports: str) -> None:
    """Write outputs and summary of a command that ended with ``code``; of a failed one there may be none."""
    folder = Path(reports)
    found: dict[str, str] = {}
    detail = _EXIT_MEANS.get(code, "done" if code == "0" else f"exit code {code}")
    if (folder / "verify.json").is_file():
        document = json.loads((folder / "verify.json").read_text())
        found, detail = verified(document), document["detail"]
    elif (folder / "build.json").is_file() and (folder / "build.json").read_text():
        found = built(json.loads((folder / "build.json").read_text())[0])
        detail = found["did"]
    _append("GITHUB_OUTPUT", "".join(f"{name}={visible(value)}\n" for name, value in found.items()))
    _append("GITHUB_STEP_SUMMARY", summary(command, found, detail))


def verified(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the outputs of `verify --report FILE.json`."""
    context = document["context"]
    return {
        "tag": context["tag"],
        "digest": context["image"],
        "epoch": context["epoch"].split()[0],
        "verdict": document["verdict"],
    }


def built(outcome: Mapping[str, Any]) -> dict[str, str]:
    """Return the outputs of one image of `build --json`."""
    return {
        "tag": outcome["reference"],
        "digest": outcome["config"],
        "epoch": str(outcome["epoch"] or ""),
        "did": outcome["did"],
        "verdict": (outcome["comparison"] or {}).get("verdict", ""),
    }


def summary(command: str, found: Mapping[str, str], detail: str) -> str:
    """Return a Markdown table of one row."""
    rows = {"command": command, **found, "detail": detail}
    shown = {name: value for name, value in rows.items() if value}
    return table(tuple(shown), [tuple(shown.values())]) + "\n\n"


def latest(document: Mapping[str, Any]) -> str:
    """Return the reference of the latest epoch in `epochs list --json`; it must be about one image."""
    epochs = [rows for rows in document["images"].values() if rows]
    if len(epochs) != 1:
        sys.exit(f"{len(epochs)} images have epochs: set the input `image` or `tag`")
    return str(epochs[0][-1]["reference"])


def epoch(document: Mapping[str, Any]) -> str:
    """Return image, repository, tag and manifest digests of `epochs show --json`, in one line.

    The digests are those of the build and of every recorded push, which compresses layers in its own way.
    """
    record = document["epoch"]
    digests = [manifest["digest"] for manifest in record["image"]["manifests"]]
    digests += [push["manifest"]["digest"] for push in document["pushes"]]
    return " ".join([record["image_name"], record["repository"], record["tag"], *digests])


def has_gpu(document: Mapping[str, Any], name: str) -> bool:
    """Return whether the machine of `fingerprint --json` has a GPU with ``name`` in its name."""
    return any(name.lower() in str(gpu.get("name", "")).lower() for gpu in document["gpus"])


def _append(variable: str, text: str) -> None:
    with Path(os.environ[variable]).open("a", encoding="utf-8") as file:
        file.write(text)


def main(verb: str, *arguments: str) -> None:
    """Do what ``verb`` says; the verbs but ``result`` read a JSON document from standard input."""
    if verb == "result":
        result(*arguments)
    elif verb == "gpu":
        sys.exit(not has_gpu(json.load(sys.stdin), *arguments))
    else:
        print({"latest": latest, "epoch": epoch}[verb](json.load(sys.stdin)))


if __name__ == "__main__":
    main(*sys.argv[1:])
