"""What the runner does without vLLM; tests/e2e runs it in the image."""

import base64
import contextlib
import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from repro_image.core.golden import GoldenRequest, RunnerInput, RunnerOutput, pack_ids, unpack_floats
from repro_image.runner import golden_runner


@dataclass
class Logprob:
    logprob: float


def entries(**logprobs: float) -> dict[int, Logprob]:
    return {int(token[1:]): Logprob(value) for token, value in logprobs.items()}


def test_alternatives_come_most_likely_first_and_ties_by_id() -> None:
    assert golden_runner._top(entries(t9=-1.0, t7=-0.5, t3=-1.0), chosen=9, top_k=3) == [7, 3, 9]


def test_a_chosen_token_beyond_the_alternatives_is_none_of_them() -> None:
    assert golden_runner._top(entries(t9=-5.0, t7=-0.5, t3=-1.0), chosen=9, top_k=2) == [7, 3]


def test_tokens_without_a_number_come_last() -> None:
    assert golden_runner._top(entries(t1=math.nan, t2=-math.inf, t3=-1.0), chosen=3, top_k=3) == [3, 2, 1]


def test_packed_numbers_are_little_endian_and_keep_every_bit() -> None:
    assert base64.b64decode(golden_runner._packed("i", [1, -2])) == pack_ids([1, -2])
    bits = [0x00000001, 0x80000000, 0x3F800001, 0xFF7FFFFF]
    floats = [struct.unpack("<f", struct.pack("<I", value))[0] for value in bits]
    packed = base64.b64decode(golden_runner._packed("f", [*floats, math.inf]))
    assert packed == struct.pack("<4I", *bits) + struct.pack("<f", math.inf)
    assert unpack_floats(packed)[:4] == tuple(floats)


def test_only_variables_that_can_change_numbers_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "VLLM_CPU_ATTN_SPLIT_KV": "0",
        "PYTHONHASHSEED": "0",
        "OMP_WAIT_POLICY": "passive",
        "VLLM_API_KEY": "secret",
        "HF_TOKEN": "secret",
        "VLLM_CACHE_ROOT": "/somewhere",
        "VLLM_HOST_IP": "10.0.0.1",
        "EDITOR": "ed",
    }.items():
        monkeypatch.setenv(name, value)
    found = golden_runner._environment()
    assert {"VLLM_CPU_ATTN_SPLIT_KV", "PYTHONHASHSEED", "OMP_WAIT_POLICY"} <= found.keys()
    assert not {"VLLM_API_KEY", "HF_TOKEN", "VLLM_CACHE_ROOT", "VLLM_HOST_IP", "EDITOR"} & found.keys()


@pytest.mark.parametrize(
    ("key", "varies"),
    [
        ("instance_id", True),
        ("model_config.model", True),
        ("model_config.hf_token", True),
        ("parallel_config.data_parallel_master_port", True),
        ("parallel_config.rank", True),
        ("cache_config.num_gpu_blocks", True),
        ("model_config._architecture", True),
        ("observability_config", True),
        ("model_config.dtype", False),
        ("cache_config.block_size", False),
        ("scheduler_config.max_num_seqs", False),
        ("model_config.seed", False),
    ],
)
def test_settings_that_vary_between_runs_are_left_out(key: str, varies: bool) -> None:
    assert bool(golden_runner._VARYING.fullmatch(key)) is varies


def test_the_output_appears_in_one_step(tmp_path: Path) -> None:
    golden_runner._write(tmp_path / "golden.json", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["golden.json"]
    assert json.loads((tmp_path / "golden.json").read_text()) == {"a": 1}


class Tokenizer:
    """One id per character; 1 before a text is its special token. chat_template: None for a model without."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[*([1] if add_special_tokens else []), *map(ord, text)])

    def apply_chat_template(
        self, chat: list[dict[str, str]], *, strftime_now: Callable[[str], str], **fixed: bool
    ) -> str:
        assert fixed == {"add_generation_prompt": True, "tokenize": False}
        assert self.chat_template is not None
        turns = "".join(message["content"] for message in chat)
        return self.chat_template.format(today=strftime_now("%d %b %Y"), turns=turns)


def tokenized(template: str | None, **prompt: Any) -> list[int]:
    runner = object.__new__(golden_runner.Runner)
    runner.tokenizer = Tokenizer(template)
    return runner.tokenize({"text": None, "chat": None, "token_ids": None, **prompt})


def test_a_text_is_tokenised_with_its_special_tokens_and_ids_not_at_all() -> None:
    assert tokenized(None, text="ab") == [1, 97, 98]
    assert tokenized(None, token_ids=[5, 6]) == []


def test_a_chat_is_written_by_the_models_own_template_and_gets_no_special_tokens_twice() -> None:
    assert tokenized("<{turns}>", chat=[{"role": "user", "content": "ab"}]) == list(map(ord, "<ab>"))


def test_a_template_that_names_the_day_names_the_same_one_for_ever() -> None:
    chat = [{"role": "user", "content": "?"}]
    assert tokenized("{today}{turns}", chat=chat) == list(map(ord, "29 Feb 2024?"))


def test_a_chat_has_a_plain_form_for_a_model_without_a_template() -> None:
    chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert tokenized(None, chat=chat) == list(map(ord, "system: a\nuser: b\nassistant:"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, golden_runner.__file__, *arguments], capture_output=True, text=True, check=False
    )


def test_a_request_of_another_format_is_refused_in_the_last_line(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"format": 2}')
    result = run(str(tmp_path / "request.json"), "model", str(tmp_path / "golden.json"))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        "golden run failed in phase request: ValueError: request of format 2; this runner reads format 1"
    )
    assert not (tmp_path / "golden.json").exists()


def test_a_failing_import_is_told_in_the_last_line_after_progress(tmp_path: Path) -> None:
    request = RunnerInput(
        nonce="0" * 64, engine={}, request=GoldenRequest(suite="tiny", root_seed=1, lanes=())
    )
    (tmp_path / "request.json").write_bytes(msgspec.json.encode(request))
    (tmp_path / "vllm.py").write_text("raise ImportError('libnuma.so.1 is missing\\nand more')")
    result = subprocess.run(
        [
            sys.executable,
            golden_runner.__file__,
            str(tmp_path / "request.json"),
            "m",
            str(tmp_path / "out.json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(tmp_path)},
    )
    lines = [line for line in result.stderr.splitlines() if line]
    assert result.returncode == 1
    assert json.loads(lines[0]) == {"phase": "import", "done": 0, "total": 1}
    assert lines[-1] == "golden run failed in phase import: ImportError: libnuma.so.1 is missing and more"


def test_what_the_runner_writes_has_the_fields_that_the_host_reads() -> None:
    """The runner cannot import the host's types, so its key names are compared with them here."""
    source = Path(golden_runner.__file__).read_text()
    assert all(f'"{field}"' in source for field in RunnerOutput.__struct_fields__)


class Parameter:
    """As much of a tensor as is looked at; times: what it was multiplied by."""

    def __init__(self, ndim: int, *, bytes_each: int = 2, is_float: bool = True) -> None:
        self.ndim, self.bytes_each, self.is_float, self.times = ndim, bytes_each, is_float, 1.0

    def is_floating_point(self) -> bool:
        return self.is_float

    def element_size(self) -> int:
        return self.bytes_each

    def numel(self) -> int:
        return 1

    def mul_(self, factor: float) -> None:
        self.times *= factor


@pytest.mark.parametrize(
    ("parameters", "scaled"),
    [
        ({"embed.weight": 2, "a.weight": 2, "b.weight": 2, "c.weight": 2, "lm_head.weight": 2}, "b.weight"),
        ({"a.weight": (2, 1), "a.scale": 2, "b.weight": (2, 1), "norm": 1}, "a.scale"),
        ({"a.weight": (2, 1), "norm": 1}, "norm"),
    ],
)
def test_the_control_scales_numbers_that_are_fine_enough_to_move(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any], scaled: str
) -> None:
    made = {
        name: Parameter(form) if isinstance(form, int) else Parameter(form[0], bytes_each=form[1])
        for name, form in parameters.items()
    }
    torch = SimpleNamespace(no_grad=contextlib.nullcontext)
    monkeypatch.setitem(sys.modules, "torch", torch)
    golden_runner._scale_weight(SimpleNamespace(named_parameters=made.items))
    assert [name for name, parameter in made.items() if parameter.times != 1] == [scaled]
