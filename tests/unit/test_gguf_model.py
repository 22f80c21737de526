import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from repro_image.adapters.gguf_model import convert
from repro_image.errors import InvalidModelError

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS = 32, 64, 4, 2, 2
HEAD_DIM = HIDDEN // HEADS
TOKENS = ["<|endoftext|>", "<|im_end|>", "Ġ", "t", "h", "e", "Ġt", "he", "<tool>"]
MERGES = ["Ġ t", "h e"]
TYPES = [3, 3, 1, 1, 1, 1, 1, 1, 4]
# Locks name these bytes by hash: another value here means another CONVERTER.
PINNED = {
    "config.json": "88cb17cdd0e704e79caffcb5cafb06adceabd3fec8ace16595b9662bb7af4049",
    "model.safetensors": "68e25c2cd913877e539b7e3cbadb52012f180dcf35214c22f277a27736331e24",
    "tokenizer.json": "deac854ae32907936efe67d158042cd4caba49544dc0ec11ebd759c6178aead7",
    "tokenizer_config.json": "c3fa25f8d5fe8040a7493f3cbc79a2cca13780d86b347c5d8365f2a735daccaa",
}


def metadata() -> dict[str, Any]:
    return {
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{{ messages }}",
    }


def tensors() -> dict[str, np.ndarray[Any, Any]]:
    kv = KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(TOKENS), HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        for part, shape in {
            "attn_norm": (HIDDEN,),
            "ffn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (kv, HIDDEN),
            "attn_v": (kv, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN),
            "ffn_down": (HIDDEN, INNER),
        }.items():
            shapes[f"blk.{layer}.{part}.weight"] = shape
    return {name: spread(shape, start=index) for index, (name, shape) in enumerate(shapes.items())}


def spread(shape: tuple[int, ...], *, start: int) -> np.ndarray[Any, Any]:
    """Return float32 values in [-2, 2), scattered and the same with every release of numpy."""
    steps = np.arange(1, 1 + int(np.prod(shape)), dtype=np.uint64) + np.uint64(100_000 * start)
    values = (steps * np.uint64(2654435761) % np.uint64(2**20)).astype(np.float64)
    return (values / 2**18 - 2).astype(np.float32).reshape(shape)


def write_gguf(
    path: Path,
    fields: dict[str, Any],
    weights: dict[str, np.ndarray[Any, Any]],
    *,
    architecture: str = "llama",
    quantized: str = "",
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    for name, values in weights.items():
        if name == quantized:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m.gguf", metadata(), tensors(), quantized="blk.0.attn_q.weight")


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Return the header and the tensors' bits, read as the format is defined."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    bits = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        bits[name] = np.frombuffer(data[8 + size + start : 8 + size + end], "<u2").reshape(entry["shape"])
    assert (8 + size) % 8 == 0
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(data) - 8 - size
    return header, bits


def widened(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_file_becomes_the_same_bytes_twice_and_on_every_machine(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "a")
    convert(model, tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") == PINNED


def test_tensors_are_sorted_named_as_the_hub_names_them_and_lie_without_gaps(
    model: Path, tmp_path: Path
) -> None:
    convert(model, tmp_path / "out")
    header, _ = read_safetensors(tmp_path / "out" / "model.safetensors")
    assert list(header) == sorted(header)
    assert len(header) == 2 + 9 * LAYERS
    assert "model.layers.1.self_attn.o_proj.weight" in header
    end = 0
    for entry in header.values():
        assert entry["data_offsets"][0] == end
        end = entry["data_offsets"][1]


def test_weights_are_rounded_to_the_nearest_bfloat16_ties_to_even(tmp_path: Path) -> None:
    weights = tensors()
    patterns = [
        0x3F808000,
        0x3F818000,
        0x3F808001,
        0x3F807FFF,
        0xBF818000,
        0x00000001,
        0x80000000,
        0x7F7F7FFF,
    ]
    rounded = [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xBF82, 0x0000, 0x8000, 0x7F7F]
    weights["output_norm.weight"][: len(patterns)] = np.array(patterns, np.uint32).view(np.float32)
    convert(write_gguf(tmp_path / "m.gguf", metadata(), weights), tmp_path / "out")
    _, bits = read_safetensors(tmp_path / "out" / "model.safetensors")
    assert bits["model.norm.weight"][: len(patterns)].tolist() == rounded


def test_rotated_pairs_move_half_a_head_apart_and_other_weights_stay(tmp_path: Path) -> None:
    weights = tensors()
    rows = np.arange(HIDDEN, dtype=np.float32)
    weights["blk.0.attn_q.weight"] = np.repeat(rows[:, None], HIDDEN, axis=1)
    weights["blk.0.attn_v.weight"] = np.repeat(rows[: KV_HEADS * HEAD_DIM, None], HIDDEN, axis=1)
    convert(write_gguf(tmp_path / "m.gguf", metadata(), weights), tmp_path / "out")
    _, bits = read_safetensors(tmp_path / "out" / "model.safetensors")
    query = widened(bits["model.layers.0.self_attn.q_proj.weight"])[:, 0]
    assert query[:HEAD_DIM].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert query[HEAD_DIM : 2 * HEAD_DIM].tolist() == [8, 10, 12, 14, 9, 11, 13, 15]
    assert widened(bits["model.layers.0.self_attn.v_proj.weight"])[:, 0].tolist() == rows[:16].tolist()


def test_quantized_weights_are_dequantized(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out")
    _, bits = read_safetensors(tmp_path / "out" / "model.safetensors")
    found = widened(bits["model.layers.0.self_attn.q_proj.weight"])
    wanted = tensors()["blk.0.attn_q.weight"].reshape(HEADS, HEAD_DIM // 2, 2, HIDDEN).swapaxes(1, 2)
    assert np.abs(found - wanted.reshape(HIDDEN, HIDDEN)).max() < 0.03


def test_the_config_states_the_whole_architecture(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["vocab_size"], config["hidden_size"], config["head_dim"]) == (
        len(TOKENS),
        HIDDEN,
        HEAD_DIM,
    )
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (HEADS, KV_HEADS)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert config["tie_word_embeddings"] is True


def test_a_head_of_its_own_is_not_tied(tmp_path: Path) -> None:
    weights = tensors()
    weights["output.weight"] = weights["token_embd.weight"] * 2
    convert(write_gguf(tmp_path / "m.gguf", metadata(), weights), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    _, bits = read_safetensors(tmp_path / "out" / "model.safetensors")
    assert bits["lm_head.weight"].shape == (len(TOKENS), HIDDEN)


def test_the_tokenizer_keeps_vocabulary_merges_and_special_tokens(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out")
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"] == {token: number for number, token in enumerate(TOKENS)}
    assert tokenizer["model"]["merges"] == [["Ġ", "t"], ["h", "e"]]
    assert [(t["id"], t["content"], t["special"]) for t in tokenizer["added_tokens"]] == [
        (0, "<|endoftext|>", True),
        (1, "<|im_end|>", True),
        (8, "<tool>", False),
    ]
    kinds = [part["type"] for part in tokenizer["pre_tokenizer"]["pretokenizers"]]
    assert kinds == ["Digits", "ByteLevel"]
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<|endoftext|>", "<|im_end|>")
    assert config["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokenizer.ggml.model", "llama", "metadata tokenizer.ggml.model is 'llama'"),
        ("tokenizer.ggml.pre", "llama-bpe", "metadata tokenizer.ggml.pre is 'llama-bpe'"),
        ("llama.rope.scaling.type", "yarn", "metadata llama.rope.scaling.type is 'yarn'"),
        ("llama.rope.dimension_count", 4, "positions rotate 4 of 8 dimensions"),
        ("llama.expert_count", 8, "metadata llama.expert_count is 8"),
        ("tokenizer.ggml.add_bos_token", True, "metadata tokenizer.ggml.add_bos_token is True"),
        ("llama.embedding_length", "32", "expected int, found str"),
        ("llama.attention.head_count", 0, "do not divide into 0 heads"),
        ("llama.attention.head_count_kv", 3, "4 heads do not share 3 key-value heads"),
        ("llama.attention.head_count_kv", 4, "k_proj.weight has shape (16, 32), expected (32, 32)"),
        ("llama.block_count", 3, "model.layers.2.input_layernorm.weight is missing (9 in all)"),
        ("llama.block_count", 1, "model.layers.1.input_layernorm.weight has shape (32,), expected None"),
        ("tokenizer.ggml.bos_token_id", 9, "beyond the vocabulary"),
        ("tokenizer.ggml.token_type", [1, 1], "2 token types for 9 tokens"),
        ("tokenizer.ggml.tokens", [*TOKENS[:-1], "he"], "the vocabulary names 1 tokens twice"),
        ("tokenizer.ggml.merges", ["h  e"], "merge 'h  e' does not join"),
        ("tokenizer.ggml.merges", ["t h"], "merge 't h' does not join"),
    ],
)
def test_what_would_not_convert_exactly_is_refused(key: str, value: Any, words: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", metadata() | {key: value}, tensors())
    with pytest.raises(InvalidModelError) as caught:
        convert(path, tmp_path / "out")
    assert words in caught.value.what
    assert caught.value.exit_code == 3
    assert caught.value.where == str(path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", metadata(), tensors(), architecture="qwen2")
    with pytest.raises(InvalidModelError, match="is 'qwen2'; only 'llama'"):
        convert(path, tmp_path / "out")


def test_a_tensor_that_a_llama_has_not_is_refused(tmp_path: Path) -> None:
    weights = tensors() | {"blk.0.attn_q.bias": np.zeros(HIDDEN, np.float32)}
    with pytest.raises(InvalidModelError, match="has no place in a plain llama model"):
        convert(write_gguf(tmp_path / "m.gguf", metadata(), weights), tmp_path / "out")


def test_a_missing_metadata_value_is_named(tmp_path: Path) -> None:
    fields = metadata()
    del fields["llama.rope.freq_base"]
    with pytest.raises(InvalidModelError, match=r"llama\.rope\.freq_base: expected float, found NoneType"):
        convert(write_gguf(tmp_path / "m.gguf", fields, tensors()), tmp_path / "out")


def test_another_tensor_type_is_refused(tmp_path: Path) -> None:
    weights = tensors()
    weights["output_norm.weight"] = weights["output_norm.weight"].astype(np.float64)
    with pytest.raises(InvalidModelError, match="has type F64; converted are BF16"):
        convert(write_gguf(tmp_path / "m.gguf", metadata(), weights), tmp_path / "out")


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800000, 0x7F7FFFFF, 0x7FFFFFFF])
def test_weights_that_are_not_finite_in_bfloat16_are_refused(bits: int, tmp_path: Path) -> None:
    weights = tensors()
    weights["output_norm.weight"][3] = np.array([bits], np.uint32).view(np.float32)[0]
    with pytest.raises(InvalidModelError, match="not finite in bfloat16"):
        convert(write_gguf(tmp_path / "m.gguf", metadata(), weights), tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 3, 100, 3000])
def test_a_truncated_file_is_refused(model: Path, keep: int, tmp_path: Path) -> None:
    model.write_bytes(model.read_bytes()[:keep])
    with pytest.raises(InvalidModelError, match="not a whole GGUF file"):
        convert(model, tmp_path / "out")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(InvalidModelError, match="not a whole GGUF file"):
        convert(path, tmp_path / "out")
