"""A GGUF file of a llama model -> the folder that vLLM loads: bf16 safetensors, config and tokenizer.

numpy and gguf do the arithmetic and JSON is written by hand, so the same file becomes the same bytes on every
machine and the host needs neither torch nor transformers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro_image.errors import InvalidModelError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Float32s = NDArray[numpy.float32]
    Uint16s = NDArray[numpy.uint16]

# Changes whenever the bytes written change: a lock names the converter that its files came from.
CONVERTER = "gguf-to-safetensors 1"

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PER_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Their values come from elementwise float32 products and sums alone, which IEEE 754 fixes to the bit.
_TYPES = frozenset({"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"})
# The names that llama.cpp gives to ways of splitting text before BPE.
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PRE_TOKENIZERS = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
}
# Token types of GGUF: both are matched as a whole before BPE; only control tokens are special.
_CONTROL, _USER_DEFINED = 3, 4


def convert(gguf_file: Path, out: Path) -> None:
    """Write model.safetensors, config.json, tokenizer.json and tokenizer_config.json into ``out``.

    Raises: InvalidModelError for a damaged file and for anything that would not be converted exactly:
        another architecture, tokenizer, tensor type or position scaling, and weights that are not finite.
    """
    model = _Gguf(gguf_file)
    shapes = model.check()
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "config.json", _config(model, has_head="lm_head.weight" in shapes))
    _write_json(out / "tokenizer.json", _tokenizer(model))
    _write_json(out / "tokenizer_config.json", _tokenizer_config(model))
    with (out / "model.safetensors").open("wb") as file:
        file.write(_safetensors_header(shapes))
        for name in sorted(shapes):
            file.write(_bfloat16(model.weights(name), model, name).astype("<u2").tobytes())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1).encode() + b"\n")


class _Gguf:
    """Typed access to a GGUF file; every complaint names the file."""

    def __init__(self, path: Path) -> None:
        import gguf

        self.path = path
        try:
            reader = gguf.GGUFReader(path)
        except (OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
            raise self.invalid(f"not a whole GGUF file: {error}") from error
        self.fields: dict[str, Any] = reader.fields
        self.tensors: dict[str, Any] = {}
        for tensor in reader.tensors:
            name = _hub_name(tensor.name)
            if name is None:
                raise self.invalid(f"tensor {tensor.name!r} has no place in a plain llama model")
            self.tensors[name] = tensor

    def invalid(self, what: str) -> InvalidModelError:
        return InvalidModelError(what, path=str(self.path))

    def value(self, key: str, kind: type) -> Any:
        """Return the metadata value of ``key``, which must be there and of ``kind``."""
        found = self.optional(key)
        if type(found) is not kind:
            raise self.invalid(f"metadata {key}: expected {kind.__name__}, found {type(found).__name__}")
        return found

    def optional(self, key: str) -> Any:
        field = self.fields.get(key)
        if field is None:
            return None
        try:
            return field.contents()
        except (ValueError, IndexError) as error:
            raise self.invalid(f"metadata {key}: {error}") from error

    def check(self) -> dict[str, tuple[int, ...]]:
        """Return tensor name -> shape, for a model that can be converted exactly."""
        for key, wanted in (
            ("general.architecture", "llama"),
            ("tokenizer.ggml.model", "gpt2"),
        ):
            if (found := self.value(key, str)) != wanted:
                raise self.invalid(f"metadata {key} is {found!r}; only {wanted!r} is converted")
        if (pre := self.value("tokenizer.ggml.pre", str)) not in _PRE_TOKENIZERS:
            raise self.invalid(
                f"metadata tokenizer.ggml.pre is {pre!r}; only {', '.join(_PRE_TOKENIZERS)} is converted"
            )
        self._check_extras()
        shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self.tensors.items()}
        wanted_shapes = self._wanted_shapes()
        if missing := sorted(wanted_shapes.keys() - shapes.keys() - {"lm_head.weight"}):
            raise self.invalid(f"tensor {missing[0]} is missing ({len(missing)} in all)")
        for name, shape in shapes.items():
            if shape != wanted_shapes.get(name):
                raise self.invalid(f"tensor {name} has shape {shape}, expected {wanted_shapes.get(name)}")
            if (kind := self.tensors[name].tensor_type.name) not in _TYPES:
                raise self.invalid(
                    f"tensor {name} has type {kind}; converted are {', '.join(sorted(_TYPES))}"
                )
        return shapes

    def _check_extras(self) -> None:
        """Refuse what changes a llama model's arithmetic or tokens without a tensor of its own."""
        if (head := self.optional("llama.rope.dimension_count")) not in (None, self.head_dim):
            raise self.invalid(
                f"positions rotate {head} of {self.head_dim} dimensions; only all of them is converted"
            )
        for key, plain in (
            ("llama.rope.scaling.type", (None, "none")),
            ("llama.expert_count", (None, 0)),
            ("llama.attention.key_length", (None, self.head_dim)),
            ("llama.attention.value_length", (None, self.head_dim)),
            ("tokenizer.ggml.add_bos_token", (None, False)),
            ("tokenizer.ggml.add_eos_token", (None, False)),
            ("tokenizer.ggml.add_space_prefix", (None, False)),
        ):
            if (found := self.optional(key)) not in plain:
                raise self.invalid(f"metadata {key} is {found!r}; only {plain[1]!r} is converted")

    def _wanted_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = (
            self.value("llama.embedding_length", int),
            self.value("llama.feed_forward_length", int),
        )
        keys, vocabulary = (
            self.key_value_heads * self.head_dim,
            len(self.value("tokenizer.ggml.tokens", list)),
        )
        layer = {
            "attn_norm": (hidden,),
            "ffn_norm": (hidden,),
            "attn_q": (hidden, hidden),
            "attn_k": (keys, hidden),
            "attn_v": (keys, hidden),
            "attn_output": (hidden, hidden),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (vocabulary, hidden),
            "lm_head.weight": (vocabulary, hidden),
            "model.norm.weight": (hidden,),
        }
        for index in range(self.value("llama.block_count", int)):
            shapes |= {
                f"model.layers.{index}.{_PER_LAYER[part]}.weight": shape for part, shape in layer.items()
            }
        return shapes

    @property
    def heads(self) -> int:
        heads: int = self.value("llama.attention.head_count", int)
        hidden = self.value("llama.embedding_length", int)
        if heads < 1 or hidden % (2 * heads):
            raise self.invalid(f"{hidden} dimensions do not divide into {heads} heads of pairs")
        return heads

    @property
    def key_value_heads(self) -> int:
        heads: int = self.value("llama.attention.head_count_kv", int)
        if heads < 1 or self.heads % heads:
            raise self.invalid(f"{self.heads} heads do not share {heads} key-value heads evenly")
        return heads

    @property
    def head_dim(self) -> int:
        return int(self.value("llama.embedding_length", int)) // self.heads

    def weights(self, name: str) -> "Float32s":
        """Return the tensor as float32, in the row order of Hugging Face's llama."""
        import gguf
        import numpy as np

        tensor = self.tensors[name]
        weights: Float32s = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for part, heads in (("q_proj", self.heads), ("k_proj", self.key_value_heads)):
            if name.endswith(f"self_attn.{part}.weight"):
                # GGUF keeps the two halves of a rotated pair side by side, Hugging Face half a head apart.
                pairs = weights.reshape(heads, self.head_dim // 2, 2, weights.shape[1])
                weights = pairs.swapaxes(1, 2).reshape(weights.shape)
        return np.ascontiguousarray(weights)


def _hub_name(name: str) -> str | None:
    """Return Hugging Face's name of the GGUF tensor ``name``, or None where a llama model has none such."""
    if name in _WHOLE:
        return _WHOLE[name]
    match name.split("."):
        case ["blk", index, part, "weight"] if index.isdecimal() and part in _PER_LAYER:
            return f"model.layers.{int(index)}.{_PER_LAYER[part]}.weight"
    return None


def _bfloat16(weights: "Float32s", model: _Gguf, name: str) -> "Uint16s":
    """Return the bits of ``weights`` rounded to bfloat16, ties to even, as torch rounds them."""
    import numpy as np

    bits = weights.view(np.uint32)
    rounded = ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    if not np.isfinite(weights).all() or ((rounded & 0x7F80) == 0x7F80).any():
        raise model.invalid(f"tensor {name} holds values that are not finite in bfloat16")
    return rounded


def _safetensors_header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """Return the length and the header; tensors follow in sorted order, the data starts 8-aligned."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(shapes):
        start, size = end, 2
        for length in shapes[name]:
            size *= length
        end = start + size
        header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _config(model: _Gguf, *, has_head: bool) -> dict[str, Any]:
    rope = float(model.value("llama.rope.freq_base", float))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(model.value("tokenizer.ggml.tokens", list)),
        "hidden_size": model.value("llama.embedding_length", int),
        "intermediate_size": model.value("llama.feed_forward_length", int),
        "num_hidden_layers": model.value("llama.block_count", int),
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.value("llama.context_length", int),
        "rms_norm_eps": float(model.value("llama.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": rope,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": not has_head,
        "bos_token_id": _token_id(model, "bos"),
        "eos_token_id": _token_id(model, "eos"),
    }


def _token_id(model: _Gguf, role: str) -> int:
    number: int = model.value(f"tokenizer.ggml.{role}_token_id", int)
    if not 0 <= number < len(model.value("tokenizer.ggml.tokens", list)):
        raise model.invalid(f"metadata tokenizer.ggml.{role}_token_id is {number}, beyond the vocabulary")
    return number


def _tokenizer(model: _Gguf) -> dict[str, Any]:
    """Return tokenizer.json: byte-level BPE with the file's own vocabulary and merges."""
    tokens: list[str] = model.value("tokenizer.ggml.tokens", list)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise model.invalid(f"the vocabulary names {len(tokens) - len(vocabulary)} tokens twice")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(model, tokens)),
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[model.value("tokenizer.ggml.pre", str)],
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": list(_merges(model, vocabulary)),
        },
    }


def _added_tokens(model: _Gguf, tokens: list[str]) -> Iterator[dict[str, Any]]:
    types = model.value("tokenizer.ggml.token_type", list)
    if len(types) != len(tokens):
        raise model.invalid(f"{len(types)} token types for {len(tokens)} tokens")
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (_CONTROL, _USER_DEFINED):
            yield {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind == _CONTROL,
            }


def _merges(model: _Gguf, vocabulary: dict[str, int]) -> Iterator[list[str]]:
    for merge in model.value("tokenizer.ggml.merges", list):
        parts = merge.split(" ")
        if len(parts) != 2 or not vocabulary.keys() >= {*parts, "".join(parts)}:
            raise model.invalid(f"merge {merge!r} does not join two tokens into a third")
        yield parts


def _tokenizer_config(model: _Gguf) -> dict[str, Any]:
    tokens = model.value("tokenizer.ggml.tokens", list)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[_token_id(model, "bos")],
        "eos_token": tokens[_token_id(model, "eos")],
        "model_max_length": model.value("llama.context_length", int),
        "clean_up_tokenization_spaces": False,
    }
    if (template := model.optional("tokenizer.chat_template")) is not None:
        config["chat_template"] = template
    return config
