"""Free space is looked at before a build begins: a full disk half way leaves a broken engine store."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repro_image.adapters.files import Project
from repro_image.adapters.store import Store
from repro_image.errors import DiskTooSmallError
from repro_image.steps.build import make_image
from repro_image.steps.plan import plan_image
from tests.scratch import IMAGE, Scratch


def test_a_build_on_a_small_disk_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "project", tmp_path / "store")
    small = tmp_path / "engine"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True)
    # Only the engine's folder is another one: everything that the check reads besides is real.
    engine: Any = SimpleNamespace(versions=SimpleNamespace(folder=str(small)), image=lambda _name: None)
    project = Project(scratch.folder)
    try:
        with pytest.raises(DiskTooSmallError) as caught:
            make_image(
                project,
                plan_image(project, IMAGE),
                store=Store(scratch.store),
                engine=engine,
                reporter=None,  # type: ignore[arg-type] # nothing may be reported before the check
                use_cache=True,
            )
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert caught.value.exit_code == 5
    assert caught.value.needed_bytes > 5e9
    assert not scratch.store.exists()
