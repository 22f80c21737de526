import json
from collections.abc import Mapping

import pytest

from repro_image.core.model_files import choose_files, refuse_unsafe
from repro_image.errors import UnsafeModelError

WHOLE = ("config.json", "model.safetensors", "tokenizer.json")
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def index_of(*files: str) -> bytes:
    return json.dumps({"weight_map": {f"layer.{n}": file for n, file in enumerate(files)}}).encode()


def choose(
    *paths: str, patterns: tuple[str, ...] = (), files: Mapping[str, bytes] | None = None
) -> tuple[str, ...]:
    return choose_files(paths, patterns, where="org/m", read=lambda path: (files or {})[path])


def refused(*paths: str, files: Mapping[str, bytes] | None = None) -> tuple[str, str]:
    with pytest.raises(UnsafeModelError) as caught:
        refuse_unsafe(paths, where="org/m", read=lambda path: (files or {}).get(path, b"{}"))
    assert caught.value.exit_code == 3
    return caught.value.path, caught.value.reason


def not_chosen(*paths: str, patterns: tuple[str, ...] = ()) -> str:
    with pytest.raises(UnsafeModelError) as caught:
        choose(*paths, patterns=patterns)
    return caught.value.reason


def test_what_vllm_reads_is_taken_and_nothing_else() -> None:
    templates = ("chat_template.jinja", "generation_config.json", "merges.txt", "special_tokens_map.json")
    others = (
        *(
            ".gitattributes",
            "README.md",
            "LICENSE",
            "onnx/model.onnx",
            "model.gguf",
            "tf_model.h5",
            "train.py",
        ),
        *(
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "original/consolidated.00.pth",
            "a/x.json",
            "old.json/x.txt",
        ),
    )
    assert choose(*WHOLE, *templates, *others) == tuple(sorted((*WHOLE, *templates)))


def test_patterns_of_image_toml_replace_the_choice_and_stay_in_one_folder() -> None:
    paths = (*WHOLE, "extra.txt", "sub/a.json", "sub/b.json", "sub/deep/c.json")
    patterns = (*WHOLE, "sub/*.json", "extra.???")
    wanted = {*WHOLE, "extra.txt", "sub/a.json", "sub/b.json"}
    assert choose(*paths, patterns=patterns) == tuple(sorted(wanted))


def test_weights_that_are_there_twice_are_taken_once() -> None:
    assert choose(*WHOLE, "model.fp16.safetensors", "consolidated.safetensors") == WHOLE
    taken = choose(
        *("config.json", "tokenizer.json", *SHARDS, INDEX, "consolidated.safetensors"),
        "consolidated.safetensors.index.json",
        files={INDEX: index_of(*SHARDS)},
    )
    assert taken == tuple(sorted(("config.json", "tokenizer.json", *SHARDS, INDEX)))


def test_weights_of_one_layout_are_taken_whatever_their_names() -> None:
    paths = ("config.json", "consolidated.safetensors", "tekken.json")
    assert choose(*paths) == paths


@pytest.mark.parametrize(
    "path",
    ["../evil.json", "/etc/passwd", "a/../../b.json", "a//b.json", "./a.json", "a\n.json", "\u202ea.json"],
)
def test_a_path_that_could_lead_out_is_refused_though_it_is_not_wanted(path: str) -> None:
    assert not_chosen(*WHOLE, path) == f"the path {path!r} could lead out of its folder"


@pytest.mark.parametrize("path", ["a b.json", ".hidden.json", "é.json", "-rf.json", "a\\b.json", "a:b.json"])
def test_a_wanted_path_that_a_lock_could_not_hold_is_refused(path: str) -> None:
    assert "characters that a lock may not have" in not_chosen(*WHOLE, path)


def test_weights_as_pickles_alone_are_refused_by_their_names() -> None:
    reason = not_chosen("config.json", "tokenizer.json", *(f"w{n}.bin" for n in range(5)), "args.PT")
    assert reason == (
        "its weights are pickles, which run code when they are loaded: args.PT, w0.bin, w1.bin and 3 more"
    )


def test_a_pickle_or_code_that_a_pattern_asks_for_is_refused() -> None:
    for path in ("pytorch_model.bin", "modeling_x.py", "kernel.so"):
        assert not_chosen(*WHOLE, path, patterns=("*",)) == "files of this kind run code when they are loaded"


@pytest.mark.parametrize(
    ("absent", "reason"),
    [
        ("config.json", "there is no config.json"),
        ("model.safetensors", "there are no weights in safetensors"),
        ("tokenizer.json", "there is no tokenizer"),
    ],
)
def test_a_model_that_is_not_whole_is_refused_without_reading_anything(absent: str, reason: str) -> None:
    rest = [path for path in WHOLE if path != absent]
    assert not_chosen(*rest) == reason
    assert refused(*rest) == ("org/m", reason)


@pytest.mark.parametrize(
    "tokenizer",
    ["tokenizer.model", "tokenizer.model.v3", "tekken.json", "vocab.json", "vocab.txt", "qwen.tiktoken"],
)
def test_every_kind_of_tokenizer_counts_as_one(tokenizer: str) -> None:
    refuse_unsafe(("config.json", "model.safetensors", tokenizer), where="m", read=lambda path: b"{}")


@pytest.mark.parametrize("path", ["config.json", "tokenizer_config.json", "sub/processor_config.json"])
def test_a_setting_that_names_code_of_the_model_is_refused(path: str) -> None:
    found = refused(*WHOLE, path, files={path: b'{"auto_map": {"AutoConfig": "configuration_x.X"}}'})
    assert found == (f"org/m/{path}", "`auto_map` asks to run the model's own code")


def test_a_shard_that_the_index_names_and_that_is_missing_is_named() -> None:
    paths = ("config.json", "tokenizer.json", SHARDS[0], INDEX)
    assert refused(*paths, files={INDEX: index_of(*SHARDS, "../x")}) == (
        f"org/m/{INDEX}",
        f"it names files that are not there: ../x, {SHARDS[1]}",
    )


@pytest.mark.parametrize(
    "text", ['{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": []}', "{}", "[]"]
)
def test_an_index_of_another_form_is_refused(text: str) -> None:
    path, reason = refused("config.json", "tokenizer.json", SHARDS[0], INDEX, files={INDEX: text.encode()})
    assert (path, reason[:25]) == (f"org/m/{INDEX}", "it is no index of weights")


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000, b"", b"NaN!"])
def test_a_file_that_is_no_json_is_refused(data: bytes) -> None:
    path, reason = refused(*WHOLE, files={"config.json": data})
    assert (path, reason[:8]) == ("org/m/config.json", "not JSON")
