"""The image of the committed locks, built where nothing but the files is the same."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Recorded
from tests.scratch import IMAGE, Scratch
from tests.virtual_machine import run_in_virtual_machine

pytestmark = [pytest.mark.soak, pytest.mark.docker, pytest.mark.timeout(6000)]


def test_another_processor_kernel_and_engine_make_the_same_image(
    smoke: Recorded, tmp_path: Path, figures: dict[str, Any]
) -> None:
    """Its processor has no AVX; no layer is kept there and no image at hand."""
    project = Scratch(tmp_path / "project", smoke.scratch.store)
    (tmp_path / "machine").mkdir()
    build = shlex.join(project.command("build", IMAGE, "--no-golden", "--json"))
    script = f"""\
rm -rf {shlex.quote(str(project.store / "layers"))}
uname -r; date +%Y; grep -o -m 1 -w 'avx[^ ]*' /proc/cpuinfo || echo no avx
umask 077; {build}
"""
    code, out, console = run_in_virtual_machine(script, folder=tmp_path / "machine", timeout_s=5400)
    assert code == 0, console
    kernel, year, avx, answer = out.split("\n", 3)
    assert (kernel != os.uname().release, year, avx) == (True, "2031", "no avx")
    assert "build: layer wheel-torch" in console
    assert json.loads(answer)[0]["config"] == smoke.config
    figures["image built on an emulated processor without AVX"] = "the same config digest"
