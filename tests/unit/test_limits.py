"""core/limits.py and the refusal of a what-if."""

from typing import Any

import pytest
from msgspec.structs import replace

from repro_image.core.golden import GoldenRequest, Lane, Prompt, Sampling
from repro_image.core.limits import impossible
from repro_image.core.whatif import parse_what_if, refuse_impossible
from repro_image.errors import ImpossibleSettingError


def request(length: int = 10, **sampling: Any) -> GoldenRequest:
    """Return one prompt of ``length`` ids that asks for 4 tokens, and its replay."""
    prompt = Prompt(id="a/000", token_ids=(7,) * length, sampling=Sampling(max_tokens=4, **sampling))
    lanes = (Lane(name="a", prompts=(prompt,)), Lane(name="replay", replay_of=("a",)))
    return GoldenRequest(suite="any", root_seed=1, lanes=lanes)


def found(
    asked: GoldenRequest, *, on_gpu: bool = False, environment: dict[str, str] | None = None, **engine: Any
) -> str | None:
    reason = impossible(asked, engine=engine, environment=environment or {}, on_gpu=on_gpu)
    return reason.setting if reason else None


def test_batch_invariance_is_for_gpus() -> None:
    invariant = {"VLLM_BATCH_INVARIANT": "1"}
    assert found(request(), environment=invariant) == "env.VLLM_BATCH_INVARIANT"
    assert found(request(), environment=invariant, on_gpu=True) is None
    assert found(request(), environment={"VLLM_BATCH_INVARIANT": "0"}) is None
    own = [replace(lane, batch_invariant=True) for lane in request().lanes]
    assert found(replace(request(), lanes=tuple(own))) == "suite"
    assert found(replace(request(), lanes=tuple(own)), on_gpu=True) is None


def test_a_prompt_its_answer_and_the_replay_have_to_fit() -> None:
    assert found(request(), max_model_len=14) == "max_model_len"
    assert found(request(), max_model_len=15) is None
    assert found(request(), max_model_len="auto") is None


def test_as_many_log_probabilities_are_needed_as_are_recorded() -> None:
    assert found(request(), max_logprobs=4) == "max_logprobs"
    assert found(request(), max_logprobs=5) is None
    assert found(request(), max_logprobs=-1) is None


def test_a_sampled_prompt_is_not_split_on_the_cpu() -> None:
    sampled = request(temperature=1.0, seed=3)
    assert found(sampled, enable_chunked_prefill=True, max_num_batched_tokens=9) == "enable_chunked_prefill"
    assert found(sampled, enable_chunked_prefill=True, max_num_batched_tokens=10) is None
    assert found(sampled, enable_chunked_prefill=False, max_num_batched_tokens=9) is None
    assert found(sampled, enable_chunked_prefill=True, max_num_batched_tokens=9, on_gpu=True) is None
    assert found(request(), enable_chunked_prefill=True, max_num_batched_tokens=9) is None


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "env.VLLM_BATCH_INVARIANT=1",
            "with --set env.VLLM_BATCH_INVARIANT the golden cannot be asked: it is",
        ),
        ("max_model_len=8", "with --set max_model_len the golden cannot be asked: 8 tokens are too few"),
    ],
)
def test_a_what_if_that_vllm_would_die_of_is_refused_up_front(setting: str, words: str) -> None:
    what_if = parse_what_if([setting])
    with pytest.raises(ImpossibleSettingError) as caught:
        refuse_impossible(what_if, request(), engine={"max_model_len": 64}, environment={}, on_gpu=False)
    assert caught.value.what.startswith(words)
    assert caught.value.exit_code == 2


def test_a_what_if_that_vllm_can_answer_is_let_through() -> None:
    what_if = parse_what_if(["dtype=float32", "env.ATEN_CPU_CAPABILITY=avx2"])
    refuse_impossible(what_if, request(), engine={"max_model_len": 64}, environment={}, on_gpu=False)
