"""The promise on a real GPU. Needs Docker and the NVIDIA Container Toolkit; the rest is set up here."""

import subprocess
from pathlib import Path

import pytest

from repro_image.adapters.goldens import Goldens
from repro_image.adapters.store import Store
from repro_image.core.golden import Golden
from tests.e2e.conftest import Recorded
from tests.fake_gpu import profile
from tests.gpu.conftest import IMAGE, cuda_project

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(5400)]


def test_a_recorded_epoch_verifies_as_a_match(epoch: Recorded, gpu: str) -> None:
    found = epoch.scratch.run("verify", epoch.reference, "--json", timeout_s=3600)
    assert found.code == 0, found.out + found.err
    assert found.json["verdict"] == "match"
    shown = epoch.scratch.run("epochs", "show", "1", "--image", IMAGE, "--json")
    assert gpu in shown.out


def test_three_repeats_in_new_containers_agree(epoch: Recorded) -> None:
    found = epoch.scratch.run("verify", epoch.tag, "--repeat", "3", timeout_s=3600)
    assert found.code == 0, found.out + found.err


def test_another_gpu_is_not_comparable_and_never_reaches_the_golden_run(epoch: Recorded) -> None:
    # One that the rules refuse by what the host sees: no container can be given a GPU that is made up.
    found = epoch.scratch.run("verify", epoch.tag, environment=profile("t4-old-driver").environment())
    assert found.code == 11, found.out + found.err
    assert "golden run" not in found.err


def test_a_changed_setting_is_found(epoch: Recorded) -> None:
    found = epoch.scratch.run("verify", epoch.tag, "--set", "dtype=float16", timeout_s=3600)
    assert found.code == 10, found.out + found.err


def test_with_batch_invariance_prompts_alone_and_together_answer_the_same(
    gpu: str, tmp_path_factory: pytest.TempPathFactory, store: Store
) -> None:
    """vLLM's own promise, from compute capability 8.0 on: its lane runs many sequences at once."""
    project = cuda_project(tmp_path_factory, store, "batch-invariant")
    project.change_image('PYTHONHASHSEED = "0"', 'PYTHONHASHSEED = "0"\nVLLM_BATCH_INVARIANT = "1"')
    project.change_image("max_num_seqs = 1", "max_num_seqs = 8")
    build = project.run("build", IMAGE, "--json", timeout_s=3600)
    assert build.code == 0, build.err
    subprocess.run(["docker", "image", "rm", "--force", build.json[0]["reference"]], check=True)
    golden = _golden(project.locks / "goldens")
    lanes = {completion.id: completion for completion in golden.completions}
    for number in range(3):
        alone, together = lanes[f"shape-alone/{number:03}"], lanes[f"shape-together/{number:03}"]
        assert alone.output_ids == together.output_ids
        assert alone.logprobs == together.logprobs


def _golden(folder: Path) -> Golden:
    (stored,) = folder.glob("*.golden.zst")
    return Goldens(folder).read(f"sha256:{stored.name.partition('.')[0]}")
