"""A new Python process that finds repro_runtime as an image does: on its path, whatever else is installed."""

import os
import re
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "tooling/repro_runtime/src"
# Variables of this machine that the tests must not depend on.
FOREIGN = re.compile("PYTHON|VLLM|CUDA|CUBLAS|NVIDIA|TORCH|OMP")


def python(
    code: str,
    *,
    flags: tuple[str, ...] = (),
    is_file: bool = False,
    path: Path | None = None,
    **environment: str,
) -> str:
    """Return what a new Python prints. path: searched too; the flag -S hides all that is installed."""
    clean = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    paths = [str(SOURCE), *([str(path)] if path else [])]
    run = subprocess.run(
        [sys.executable, *flags, *([code] if is_file else ["-c", code])],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**clean, "PYTHONPATH": os.pathsep.join(paths), **environment},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
