"""The wheel of repro_runtime: the same bytes from any folder, all that its users need and nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from hashlib import sha256
from pathlib import Path

import pytest

from tests.unit.fresh_python import SOURCE

# 2026-01-01
EPOCH = 1767225600


def build(folder: Path, *, umask: int, mtime: int) -> Path:
    """Return the wheel of a copy of the sources in ``folder``."""
    sources = folder / "sources"
    shutil.copytree(SOURCE.parent, sources, ignore=shutil.ignore_patterns("__pycache__", "dist"))
    for path in sources.rglob("*"):
        path.chmod(0o777 & ~umask)
        os.utime(path, (mtime, mtime))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(sources)],
        check=True,
        timeout=120,
        umask=umask,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)},
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("one"), umask=0o022, mtime=EPOCH)


def test_a_wheel_built_elsewhere_has_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    other = build(tmp_path / "another" / "folder", umask=0o077, mtime=EPOCH + 86400)
    assert other.name == wheel.name == "repro_runtime-0.1.0-py3-none-any.whl"
    assert sha256(other.read_bytes()).hexdigest() == sha256(wheel.read_bytes()).hexdigest()


def test_a_wheel_holds_the_package_its_types_and_its_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = message_from_string(archive.read("repro_runtime-0.1.0.dist-info/METADATA").decode())
    package = {
        f"repro_runtime/{path.name}" for path in (SOURCE / "repro_runtime").iterdir() if path.is_file()
    }
    assert "repro_runtime/py.typed" in package
    own = "repro_runtime-0.1.0.dist-info"
    assert names == package | {
        f"{own}/METADATA",
        f"{own}/WHEEL",
        f"{own}/RECORD",
        f"{own}/licenses/LICENSE",
    }
    assert metadata["Requires-Dist"] is None
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"


def test_an_installed_wheel_is_imported_and_found_by_its_fingerprint(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import repro_runtime; print(repro_runtime.__file__, repro_runtime.fingerprint()['packages'])"
    run = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
    )
    assert run.stdout == f"{tmp_path}/repro_runtime/__init__.py {{'repro-runtime': '0.1.0'}}\n"
