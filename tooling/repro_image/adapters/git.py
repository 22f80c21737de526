"""The git revision of the project, noted in an epoch and never compared."""

import subprocess
from pathlib import Path


def source_of(folder: Path) -> dict[str, str]:
    """Return ``{"revision": <40 hex>, "state": "clean" | "changed"}``, or nothing where git knows no
    revision.
    """
    revision = _git(folder, "rev-parse", "--verify", "HEAD")
    if revision is None:
        return {}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "state": "changed" if changes else "clean"}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
