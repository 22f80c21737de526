"""What is refused before anything is built or run, because vLLM would die of it late."""

import pytest

from tests.e2e.conftest import Recorded
from tests.scratch import IMAGE

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("env.VLLM_BATCH_INVARIANT=1", "on the CPU vLLM starts with it and dies at the first token"),
        ("max_model_len=16", "16 tokens are too few"),
    ],
)
def test_a_what_if_that_vllm_would_die_of_ends_with_2_before_a_container_starts(
    epoch: Recorded, setting: str, words: str
) -> None:
    run = epoch.scratch.run("verify", epoch.reference, "--set", setting)
    assert (run.code, words in run.err) == (2, True), run.err
    assert run.seconds < 30


def test_batch_invariance_in_the_settings_of_a_cpu_image_ends_with_3(epoch: Recorded) -> None:
    scratch = epoch.scratch
    text = scratch.image_toml.read_text()
    try:
        scratch.change_image('PYTHONHASHSEED = "0"', 'PYTHONHASHSEED = "0"\nVLLM_BATCH_INVARIANT = "1"')
        run = scratch.run("build", IMAGE)
    finally:
        scratch.image_toml.write_text(text)
    assert run.code == 3
    assert "`$.golden.environment.VLLM_BATCH_INVARIANT`" in run.err
