"""Which locked versions moved from the last commit to the index of a clone, as a Markdown table."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tables import table

_REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s\\]+)", re.MULTILINE)


def versions(path: str, text: str) -> dict[str, str]:
    """Return package, base or model -> version of a lock; empty for other files."""
    name = Path(path).name
    if name == "requirements.txt":
        return {found["name"]: found["version"] for found in _REQUIREMENT.finditer(text)}
    if name not in ("debian.json", "base.json", "model.json") or not text:
        return {}
    document = json.loads(text)
    found = {deb["name"]: deb["version"] for deb in document.get("packages", ())}
    if "manifest" in document:
        found[document["reference"]] = document["manifest"]
    if "commit" in document:
        found[document["repository"]] = document["commit"]
    if "source" in document:
        found[document["source"]["name"]] = document["source"]["version"]
    return found


def changes(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield (lock, package, version before, version after), both empty where there was none."""
    for path in _git(folder, "diff", "--cached", "--name-only", "--", "locks").splitlines():
        before = versions(path, _git(folder, "show", f"HEAD:{path}", missing=""))
        after = versions(path, _git(folder, "show", f":{path}", missing=""))
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                yield path, name, before.get(name, ""), after.get(name, "")


def told(folder: Path) -> str:
    """Return the table under what merging does."""
    merged = (
        "Merged, `epoch.yml` builds and asks its own image (`REPRO_GPU_IMAGE`, by default `vllm-cuda`), which"
        " is a new epoch where its locks are listed here; `repro-image build` makes one of another image."
    )
    return f"{merged}\n\n{table(('lock', 'package', 'from', 'to'), changes(folder))}"


def _git(folder: Path, *arguments: str, missing: str | None = None) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=missing is None
    )
    return done.stdout if done.returncode == 0 else str(missing)


if __name__ == "__main__":
    print(told(Path(sys.argv[1])))
