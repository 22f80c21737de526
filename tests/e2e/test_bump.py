"""Another version of one light package in the real image: every other layer stays what it is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from repro_image.adapters.files import REQUIREMENTS, Project
from repro_image.adapters.store import Store
from repro_image.core.layers import layer_groups
from repro_image.core.lockfile import LockedWheel, print_requirements
from tests.e2e.conftest import Recorded
from tests.scratch import IMAGE, Scratch, docker

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(600)]

BUMPED = "idna"


def bump(scratch: Scratch, folder: Path) -> LockedWheel:
    """Lock another version of BUMPED, as the index has it; return its wheel."""
    lock = Project(scratch.folder).locks(IMAGE).requirements
    old = next(wheel for wheel in lock.wheels if wheel.name == BUMPED)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "--dest", str(folder), f"{BUMPED}!={old.version}"], check=True)
    (file,) = folder.glob(f"{BUMPED}-*.whl")
    new = replace(
        old,
        version=file.name.split("-")[1],
        sha256=Store(scratch.store).add(file),
        filename=file.name,
        size_bytes=file.stat().st_size,
    )
    wheels = tuple(new if wheel is old else wheel for wheel in lock.wheels)
    (scratch.locks / REQUIREMENTS).write_text(print_requirements(replace(lock, wheels=wheels)))
    return new


def diff_ids(reference: str) -> list[str]:
    found: list[str] = json.loads(
        docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", reference)
    )
    return found


def test_a_bump_of_a_light_package_changes_the_layer_of_its_bucket_alone(
    epoch: Recorded, tmp_path: Path
) -> None:
    later = Scratch(tmp_path / "later", epoch.scratch.store)
    shutil.copytree(epoch.scratch.folder, later.folder, dirs_exist_ok=True)
    new = bump(later, tmp_path)
    groups = layer_groups(Project(later.folder).locks(IMAGE).requirements.wheels)
    (position,) = [number for number, group in enumerate(groups) if new in group.wheels]
    found = later.run("build", IMAGE, "--no-golden", "--json")
    assert found.code == 0, found.err
    reference = found.json[0]["reference"]
    try:
        pairs = list(zip(diff_ids(epoch.reference), diff_ids(reference), strict=True))
        # The root is below the packages.
        assert [number for number, (a, b) in enumerate(pairs) if a != b] == [position + 1]
        program = f"import importlib.metadata; print(importlib.metadata.version('{BUMPED}'))"
        container = ("run", "--rm", "--network", "none", reference, "python3", "-c", program)
        assert docker(*container) == new.version
    finally:
        docker("image", "rm", "--force", reference)
