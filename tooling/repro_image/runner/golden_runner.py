"""Asks vLLM a golden request. Runs inside the image under test and imports only what that image holds.

usage: python golden_runner.py REQUEST.json MODEL_FOLDER GOLDEN.json

Reads RunnerInput and writes RunnerOutput (repro_image/core/golden.py has both forms), in one step at the end.
Standard error carries vLLM's log and, on lines of their own, progress such as
{"phase": "greedy", "done": 3, "total": 8}. Exits with 0, or with 1 and a last line that says what failed.
Settings and environment come from outside.
"""

import base64
import datetime
import enum
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import random
import re
import sys
import time
import traceback
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "numpy", "transformers", "tokenizers", "safetensors")
_CANARY_SEED = 20_240_229
# Some chat templates write the day into the prompt: for a golden it is always the same one.
_TODAY = datetime.date(2024, 2, 29)
# Variables that can change numbers; of these, what names a place or a secret is left out.
_NUMERIC = re.compile(
    r"(VLLM|OMP|GOMP|KMP|MKL|OPENBLAS|ONEDNN|DNNL|TORCH|TORCHDYNAMO|TORCHINDUCTOR|PYTORCH|ATEN|CUBLAS|CUDNN|CUDA|NCCL|"
    r"TRITON|TOKENIZERS|HF|NVIDIA_TF32)_.*|TORCHDYNAMO_DISABLE|PYTHONHASHSEED|LD_PRELOAD|GLIBC_TUNABLES"
)
_PLACE_OR_SECRET = re.compile(
    r".*(_ROOT|_DIR|_PATH|_HOME|_CACHE|_PORT|_IP|_HOST|_URL|_ENDPOINT|_TOKEN|_SECRET|_KEY|_PASSWORD)"
)
# Resolved settings that name a place, process, secret or moment instead of a choice, or only what is logged.
_VARYING = re.compile(
    r"(.*\.)?(model|tokenizer|served_model_name|instance_id|model_weights|hf_token|master_addr|cache_dir|local_.*|_.*|"
    r".*_(port|ports|ip|host|path|dir|root|url|address|id|time)|.*rank.*|num_(gpu|cpu)_blocks)|"
    r"(observability|profiler|logging)_config|shutdown_timeout"
)


class Runner:
    """One golden run: the engine, what it answered, how long each phase took."""

    def __init__(self, asked: dict[str, Any], model: str, progress: Callable[..., None]) -> None:
        self.asked, self.model, self.progress = asked, model, progress
        self.request: dict[str, Any] = asked["request"]
        self.expected: dict[str, Any] = asked["expected"] or {}
        self.top_k: int = self.request["top_k"]
        self.seconds: dict[str, float] = {}
        self.phase, self.total = "start", 0
        self.weights: dict[str, str] = {}
        self.completions: list[dict[str, Any]] = []
        self.fed: dict[str, list[int]] = {}
        self.answers: dict[str, list[int]] = {}
        self.seen: set[int] = set()
        self.differs = False

    def run(self) -> dict[str, Any]:
        """Return the RunnerOutput as plain values."""
        environment = _environment()  # before vLLM adds its own
        with self.timed("import", 1):
            import vllm
        with self.timed("load", 1):
            self.load(vllm)
        for lane in self.request["lanes"]:
            with self.timed(lane["name"], len(lane["prompts"]) or len(self.replayed(lane))):
                if lane["replay_of"]:
                    self.replay(lane)
                else:
                    self.ask(lane)
            if self.differs:
                break
        return {
            "format": 1,
            "nonce": self.asked["nonce"],
            "completions": self.completions,
            "vocabulary": {str(number): self.token_text(number) for number in sorted(self.seen)},
            "weights": dict(sorted(self.weights.items())),
            "canaries": _canaries(),
            "inside": _inside(self.llm, environment, self.model),
            "seconds": self.seconds,
        }

    @contextmanager
    def timed(self, phase: str, total: int) -> Iterator[None]:
        self.phase, self.total, started = phase, total, time.monotonic()
        self.progress(phase=phase, done=0, total=total)
        yield
        self.seconds[phase] = round(time.monotonic() - started, 3)
        self.progress(phase=phase, done=total, total=total)

    def load(self, vllm: Any) -> None:
        """Start the engine; take checksums of the weights when they are loaded and not yet packed."""
        from vllm.model_executor.model_loader import base_loader
        from vllm.model_executor.models import registry

        if hasattr(registry, "_run_in_subprocess"):
            # vLLM looks at the model's class in a second process, which imports everything again: seconds.
            registry._run_in_subprocess = lambda look: look()
        original, own_process = base_loader.process_weights_after_loading, os.getpid()

        def with_checksums(model: Any, *args: Any, **kwargs: Any) -> Any:
            if os.getpid() == own_process:  # a worker that was forked has this hook too, and nobody to tell
                if self.asked["scale_weight"]:
                    _scale_weight(model)
                # vLLM's CPU kernels repack matrices and leave empty tensors behind: later would be too late.
                self.weights = _checksums(model)
            return original(model, *args, **kwargs)

        base_loader.process_weights_after_loading = with_checksums
        self.llm = vllm.LLM(model=self.model, tokenizer=self.model, **self.asked["engine"])
        if not self.weights:  # the workers are processes of their own
            if self.asked["scale_weight"]:
                self.llm.collective_rpc(_scale_weight_of)
            # Each holds its own part of every tensor, under the same name.
            for rank, sums in enumerate(self.llm.collective_rpc("compute_weight_checksums")):
                self.weights.update({f"rank{rank}.{name}": checksum for name, checksum in sums.items()})
        self.differs = bool(self.expected) and _are_others(self.weights, self.expected["weights"])
        self.sampling_params = vllm.SamplingParams
        self.tokenizer = self.llm.get_tokenizer()

    def ask(self, lane: dict[str, Any]) -> None:
        prompts = lane["prompts"]
        batches = [prompts] if lane["together"] else [[prompt] for prompt in prompts]
        for batch in batches:
            tokenized = [self.tokenize(prompt) for prompt in batch]
            fed = [
                ids if prompt["token_ids"] is None else list(prompt["token_ids"])
                for prompt, ids in zip(batch, tokenized, strict=True)
            ]
            results = self.generate(fed, [self.sampling(**prompt["sampling"]) for prompt in batch])
            for prompt, text_ids, ids, result in zip(batch, tokenized, fed, results, strict=True):
                answer = result.outputs[0]
                self.fed[prompt["id"]], self.answers[prompt["id"]] = ids, list(answer.token_ids)
                self.keep(
                    prompt["id"], lane, text_ids, ids, answer.token_ids, answer.logprobs, answer.finish_reason
                )
            if self.differs:
                return

    def replay(self, lane: dict[str, Any]) -> None:
        """Feed prompts with their answers back and keep what the model thinks of each token of the answer."""
        sources = self.replayed(lane)
        for batch in [sources] if lane["together"] else [[source] for source in sources]:
            asked = [
                (
                    source,
                    self.fed[source],
                    list(self.asked["continuations"].get(source, self.answers[source])),
                )
                for source in batch
            ]
            sampling = self.sampling(max_tokens=1, prompt_logprobs=self.top_k, logprobs=None)
            results = self.generate([ids + answer for _, ids, answer in asked], [sampling] * len(asked))
            for (source, ids, answer), result in zip(asked, results, strict=True):
                name, odds = f"{lane['name']}/{source}", result.prompt_logprobs[len(ids) :]
                self.keep(name, lane, [], ids, answer, odds, "replay")

    def replayed(self, lane: dict[str, Any]) -> list[str]:
        own = {
            other["name"]: [prompt["id"] for prompt in other["prompts"]] for other in self.request["lanes"]
        }
        return [prompt for source in lane["replay_of"] for prompt in own[source]]

    def generate(self, prompts: list[list[int]], sampling: list[Any]) -> list[Any]:
        results: list[Any] = self.llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False
        )
        return results

    def tokenize(self, prompt: dict[str, Any]) -> list[int]:
        """Return the ids of the prompt's text or chat, or none where it has only ids."""
        if prompt["chat"] is not None:
            # A template writes its own special tokens.
            return list(self.tokenizer(self.rendered(prompt["chat"]), add_special_tokens=False).input_ids)
        return [] if prompt["text"] is None else list(self.tokenizer(prompt["text"]).input_ids)

    def rendered(self, chat: list[dict[str, str]]) -> str:
        """Return the chat as the model's own template writes it, or in a plain form for a model without
        one.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            turns = [f"{message['role']}: {message['content']}\n" for message in chat]
            return "".join((*turns, "assistant:"))
        text: str = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False, strftime_now=_TODAY.strftime
        )
        return text

    def sampling(self, **chosen: Any) -> Any:
        """Return SamplingParams with every value given, so that no default can move with a release."""
        return self.sampling_params(
            **{
                "n": 1,
                "temperature": 0.0,
                "top_p": 1.0,
                "top_k": 0,
                "min_p": 0.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "repetition_penalty": 1.0,
                "seed": None,
                "stop": None,
                "stop_token_ids": None,
                "ignore_eos": True,
                "min_tokens": 0,
                "logprobs": self.top_k,
                "prompt_logprobs": None,
                "detokenize": False,
                "skip_special_tokens": False,
                **chosen,
            }
        )

    def keep(
        self,
        name: str,
        lane: dict[str, Any],
        tokenized: list[int],
        prompt_ids: list[int],
        output_ids: list[int],
        logprobs: list[dict[int, Any]],
        finish_reason: str,
    ) -> None:
        topk_ids, floats = [], []
        for number, (chosen, entries) in enumerate(zip(output_ids, logprobs, strict=True)):
            top = _top(entries, chosen, self.top_k)
            if len(top) != self.top_k:
                raise RuntimeError(f"{name}: {len(top)} alternatives for token {number}, not {self.top_k}")
            topk_ids += top
            floats += [entries[token].logprob for token in (chosen, *top)]
        self.seen.update(output_ids, topk_ids)
        compared = {
            "tokenized": _packed("i", tokenized),
            "prompt_ids": _packed("i", prompt_ids),
            "output_ids": _packed("i", output_ids),
            "topk_ids": _packed("i", topk_ids),
            "logprobs": _packed("f", floats),
        }
        digest = hashlib.sha256("\n".join(compared.values()).encode()).hexdigest()
        self.differs |= bool(self.expected) and digest != self.expected["completions"][name]
        self.completions.append(
            {"id": name, "lane": lane["name"], **compared, "finish_reason": finish_reason}
        )
        done = sum(completion["lane"] == lane["name"] for completion in self.completions)
        self.progress(phase=self.phase, done=done, total=self.total)

    def token_text(self, number: int) -> str:
        """Return the token's text, or its spelling in the vocabulary where it is part of a character."""
        text: str = self.tokenizer.decode([number])
        if "\ufffd" not in text:
            return text
        spelling = self.tokenizer.convert_ids_to_tokens([number])[0]
        return text if spelling is None else str(spelling)


def _top(entries: dict[int, Any], chosen: int, top_k: int) -> list[int]:
    """Return the ``top_k`` most likely ids, ties by id.

    vLLM adds the chosen token only where it is none of them: then there is one entry more.
    """
    ids = [token for token in entries if len(entries) <= top_k or token != chosen]

    def rank(token: int) -> tuple[bool, float, int]:
        logprob = entries[token].logprob
        return (True, 0.0, token) if math.isnan(logprob) else (False, -logprob, token)

    return sorted(ids, key=rank)


def _packed(code: str, values: list[Any]) -> str:
    """Return little-endian int32 ("i") or float32 ("f") in base64; vLLM's numbers are float32."""
    packed = array(code, values)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def _checksums(model: Any) -> dict[str, str]:
    """Return parameter name -> sha256 of its bytes."""
    import torch

    sums = {}
    for name, parameter in model.named_parameters():
        data = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        sums[name] = hashlib.sha256(data).hexdigest()
    return sums


def _are_others(weights: dict[str, str], expected: dict[str, str]) -> bool:
    """Return whether other tensors were loaded; nothing can be told where all have other names."""
    untold = weights and expected and weights.keys().isdisjoint(expected)
    return weights != expected and not untold


def _scale_weight(model: Any) -> None:
    """Multiply one matrix in the middle of ``model`` by 1 + 2**-7, or a vector where it has no such matrix.

    Numbers of 8 bits are passed over: they are too coarse to move. A quantised model has scales, and norms.
    """
    import torch

    inner = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
        and parameter.element_size() > 1
        and parameter.numel() > 0
        and "embed" not in name
        and "head" not in name
    }
    names = sorted(name for name in inner if inner[name].ndim == 2) or sorted(inner)
    with torch.no_grad():
        inner[names[len(names) // 2]].mul_(1 + 2**-7)


def _scale_weight_of(worker: Any) -> None:
    """Do the same in a worker, to its part of the matrix; every worker has the same names."""
    _scale_weight(worker.model_runner.model)


def _canaries() -> dict[str, str]:
    """Return the first values of the random-number generators, as hex text; the run's own stay untouched."""
    import numpy as np
    import torch

    python = random.Random(_CANARY_SEED)  # noqa: S311  has to repeat, not to be secret
    torch_generator = torch.Generator().manual_seed(_CANARY_SEED)
    exponential = torch.empty(4).exponential_(generator=torch_generator)
    on_gpu = {}
    if torch.cuda.is_available():
        cuda_generator = torch.Generator(device="cuda").manual_seed(_CANARY_SEED)
        drawn = torch.rand(4, generator=cuda_generator, device="cuda")
        on_gpu["torch.cuda.rand"] = drawn.cpu().numpy().tobytes().hex()
    return on_gpu | {
        "python.random": array("d", [python.random() for _ in range(4)]).tobytes().hex(),
        "numpy.random_state": np.random.RandomState(_CANARY_SEED).random_sample(4).tobytes().hex(),
        "numpy.default_rng": np.random.default_rng(_CANARY_SEED).random(4).tobytes().hex(),
        "torch.exponential": exponential.numpy().tobytes().hex(),
        "torch.rand": torch.rand(4, generator=torch_generator).numpy().tobytes().hex(),
        "torch.randn": torch.randn(4, generator=torch_generator).numpy().tobytes().hex(),
    }


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if _NUMERIC.fullmatch(name) and not _PLACE_OR_SECRET.fullmatch(name)
    }


def _inside(llm: Any, environment: dict[str, str], model: str) -> dict[str, Any]:
    import torch
    import vllm

    return {
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "packages": {"vllm": vllm.__version__}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cpus": len(os.sched_getaffinity(0)),
        "engine": dict(sorted(_flatten("", llm.llm_engine.vllm_config, model))),
        "environment": environment,
    }


def _flatten(prefix: str, value: Any, model: str) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of each plain value in vLLM's nested settings that is a choice."""
    for name, entry in vars(value).items():
        key = f"{prefix}{name}"
        if _VARYING.fullmatch(key):
            continue
        if type(entry).__module__.startswith("vllm.config") and not isinstance(entry, enum.Enum):
            yield from _flatten(f"{key}.", entry, model)
        elif (text := _plain(entry)) is not None and text != model and not text.startswith("/"):
            yield key, text


def _plain(value: Any) -> str | None:
    """Return ``value`` as text that does not vary between processes, or None for an object."""
    import torch

    match value:
        case enum.Enum():
            return str(value.name)
        case None | bool() | int() | float() | str() | torch.dtype() | torch.device():
            return str(value)
        case list() | tuple() | set() | frozenset():
            parts = [_plain(entry) for entry in value]
            ordered = sorted(map(str, parts)) if isinstance(value, set | frozenset) else parts
            return None if None in parts else ", ".join(map(str, ordered))
    return None


def _write(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` in one step: a run that is ended leaves no half of it."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def main(request: str, model: str, output: str) -> int:
    """Run the request and return the exit code; whatever the libraries print goes to standard error."""
    progress_handle = os.dup(2)
    os.dup2(2, 1)

    def progress(**fields: Any) -> None:
        # Starts a line of its own: a library may have left one unfinished.
        os.write(progress_handle, f"\n{json.dumps(fields)}\n".encode())

    runner = None
    try:
        asked = json.loads(Path(request).read_bytes())
        if asked["format"] != 1:
            raise ValueError(f"request of format {asked['format']}; this runner reads format 1")
        runner = Runner(asked, model, progress)
        _write(Path(output), runner.run())
    except BaseException as error:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        reason = " ".join(str(error).split())[:2000]
        phase = runner.phase if runner else "request"
        os.write(
            progress_handle,
            f"\ngolden run failed in phase {phase}: {type(error).__name__}: {reason}\n".encode(),
        )
        return 1
    return 0


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    # The libraries' own exit handlers would print after the last line, and wait for threads.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
