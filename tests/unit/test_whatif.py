import pytest
from msgspec.structs import replace

from repro_image.core.project import EngineValue
from repro_image.core.whatif import WhatIf, changed_engine, changed_request, parse_what_if
from repro_image.errors import WhatIfError
from tests.unit.made_goldens import make_golden


def test_no_setting_is_no_change() -> None:
    assert parse_what_if([]).is_empty
    assert changed_engine({"dtype": "bfloat16"}, WhatIf()) == {"dtype": "bfloat16"}
    request = make_golden().request
    assert changed_request(request, WhatIf()) == request


def test_each_kind_of_key_is_understood() -> None:
    what_if = parse_what_if(
        [
            *("dtype=float32", "block_size=16", "x=1.5", "y=-3", "enforce_eager=false", "z=", "v=a,b:c/d=e"),
            *("env.ATEN_CPU_CAPABILITY=avx2", "threads=1", "sampling.seed=7"),
        ]
    )
    assert what_if == WhatIf(
        engine={
            "dtype": "float32",
            "block_size": 16,
            "x": 1.5,
            "y": -3,
            "enforce_eager": False,
            "z": "",
            "v": "a,b:c/d=e",
        },
        environment={"ATEN_CPU_CAPABILITY": "avx2"},
        threads=1,
        sampling_seed=7,
    )
    assert not what_if.is_empty
    assert not parse_what_if(["sampling.seed=0"]).is_empty


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("dtype", "it must be KEY=VALUE without spaces or quotes"),
        ("", "it must be KEY=VALUE without spaces or quotes"),
        ("dtype=a b", "it must be KEY=VALUE without spaces or quotes"),
        ("dtype=$(id)", "it must be KEY=VALUE without spaces or quotes"),
        ("dtype=x\n", "it must be KEY=VALUE without spaces or quotes"),
        ("env.A='x'", "it must be KEY=VALUE without spaces or quotes"),
        ("threads=0", "threads must be a whole number"),
        ("threads=two", "threads must be a whole number"),
        ("threads=-1", "threads must be a whole number"),
        ("threads=" + "9" * 5000, "threads must be a whole number"),
        ("sampling.seed=1.5", "sampling.seed must be a whole number"),
        ("sampling.top_p=1", "unknown key"),
        ("Dtype=x", "unknown key"),
        ("env.lower=x", "unknown key"),
        ("env.=x", "unknown key"),
        ("-o=x", "unknown key"),
        ("max_model_len=4k", "max_model_len must be a whole number of at least 1"),
        ("max_model_len=0", "max_model_len must be a whole number of at least 1"),
        ("max_num_seqs=x", "max_num_seqs must be a whole number of at least 1"),
        ("tensor_parallel_size=two", "tensor_parallel_size must be a whole number of at least 1"),
        ("tensor_parallel_size=true", "tensor_parallel_size must be a whole number of at least 1"),
        ("=x", "unknown key"),
    ],
)
def test_what_is_not_understood_is_refused_with_exit_code_2(setting: str, reason: str) -> None:
    with pytest.raises(WhatIfError) as caught:
        parse_what_if([setting])
    assert (caught.value.exit_code, caught.value.setting) == (2, setting)
    assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "HOME"])
def test_a_variable_that_the_run_sets_itself_is_refused_because_it_would_not_count(name: str) -> None:
    with pytest.raises(WhatIfError) as caught:
        parse_what_if([f"env.{name}=1"])
    assert caught.value.setting == f"env.{name}"


def test_a_sampling_seed_changes_the_seeds_of_sampled_prompts_only() -> None:
    request = make_golden().request
    changed = changed_request(request, WhatIf(sampling_seed=1))
    pairs = [
        (before, after)
        for lane, other in zip(request.lanes, changed.lanes, strict=True)
        for before, after in zip(lane.prompts, other.prompts, strict=True)
    ]
    for before, after in pairs:
        is_sampled = before.sampling.seed is not None
        assert (before.sampling.seed != after.sampling.seed) is is_sampled
        assert replace(after, sampling=before.sampling) == before
    assert changed_request(request, WhatIf(sampling_seed=1)) == changed
    assert changed_request(request, WhatIf(sampling_seed=2)) != changed


def test_a_change_replaces_recorded_engine_settings_and_keeps_the_others() -> None:
    recorded: dict[str, EngineValue] = {"dtype": "bfloat16", "seed": 0}
    assert changed_engine(recorded, parse_what_if(["dtype=float32"])) == {"dtype": "float32", "seed": 0}
    assert recorded == {"dtype": "bfloat16", "seed": 0}


def test_a_variable_named_like_a_credential_is_refused_and_its_value_is_not_repeated() -> None:
    with pytest.raises(WhatIfError) as caught:
        parse_what_if(["env.HF_TOKEN=abcdef"])
    assert caught.value.exit_code == 2
    assert "abcdef" not in str(caught.value)
