"""What repro_runtime does where torch and vLLM are real. Runs inside the image; prints JSON as its last line.

usage: python observe_runtime.py torch | python observe_runtime.py vllm MODEL_FOLDER ENGINE_JSON
"""

import dataclasses
import json
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import repro_runtime


def main(which: str, *arguments: str) -> None:
    seen = see_torch() if which == "torch" else see_vllm(*arguments)
    print(json.dumps(seen), flush=True)
    os._exit(0)  # vLLM's own exit handlers wait for threads


def draws() -> list[Any]:
    import numpy as np
    import torch

    return [
        random.random(),  # noqa: S311  has to repeat, not to be secret
        np.random.rand(2).tolist(),
        torch.rand(3).tolist(),
        torch.randn(3).tolist(),
        torch.randperm(9).tolist(),
        torch.multinomial(torch.ones(50), 5).tolist(),
    ]


def see_torch() -> dict[str, Any]:
    before_import = repro_runtime.fingerprint()["torch"]
    seeded = repro_runtime.set_seed(7)
    first, forked = draws(), in_fork(draws)
    repro_runtime.set_seed(7)
    return {
        "before_import": before_import,
        "seeded": seeded,
        "draws": [first, draws()],
        "other": (repro_runtime.set_seed(8), draws())[1],
        "forked": forked,
        "next": (repro_runtime.set_seed(7), draws(), draws())[2],
        **see_switches(),
        "late": see_late_cuda(),
    }


def in_fork(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in a fork of this process."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, json.dumps(work()).encode())
        os._exit(0)
    os.wait()
    return json.loads(os.read(read, 1 << 16))


def see_switches() -> dict[str, Any]:
    import torch

    compiled: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(1)
        return graph.forward

    used = torch.compile(lambda x: x + 1, backend=backend)
    unused = torch.compile(lambda x: x + 2, backend=backend)
    used(torch.ones(2))
    torch.backends.fp32_precision = "tf32"  # the state that the older names cannot be read in
    torch.backends.cudnn.benchmark = True
    compiled_before = len(compiled)
    switched = repro_runtime.disable_auto_optimization()
    again = repro_runtime.disable_auto_optimization()

    def compile_and_use() -> None:
        for function in (used, unused, torch.compile(lambda x: x + 3, backend=backend)):
            function(torch.ones(5))

    compile_and_use()
    thread = threading.Thread(target=compile_and_use)
    thread.start()
    thread.join()
    return {
        "compiled": [compiled_before, len(compiled)],
        "switched": dataclasses.asdict(switched),
        "again": dataclasses.asdict(again),
        "older_names": [
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.get_float32_matmul_precision(),
        ],
        "forked_settings": in_fork(lambda: repro_runtime.fingerprint()["torch"]),
        "fingerprint": repro_runtime.fingerprint(),
        "threads": torch.get_num_threads(),
    }


def see_late_cuda() -> dict[str, Any]:
    """Look as if CUDA were started: there is no GPU here."""
    import torch

    del os.environ["CUBLAS_WORKSPACE_CONFIG"]
    torch.cuda._initialized = True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        switched = repro_runtime.disable_auto_optimization()
    torch.cuda._initialized = False
    return {
        "switched": dataclasses.asdict(switched),
        "value": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "warned": [[warning.category.__name__, str(warning.message)] for warning in caught],
    }


def see_vllm(model: str, engine: str) -> dict[str, Any]:
    import torch

    torch.use_deterministic_algorithms(True)
    switched = repro_runtime.disable_auto_optimization()
    torch.use_deterministic_algorithms(True, warn_only=True)
    repro_runtime.set_seed(7)
    drawn = draws()
    repro_runtime.set_seed(7)
    import vllm

    llm = vllm.LLM(model=model, tokenizer=model, **json.loads(engine))
    after_engine = draws()

    def answer(seed: int | None) -> list[int]:
        sampling = vllm.SamplingParams(temperature=1.0, seed=seed, max_tokens=8, ignore_eos=True)
        (result,) = llm.generate([{"prompt_token_ids": list(range(20, 40))}], sampling, use_tqdm=False)
        return list(result.outputs[0].token_ids)

    def answer_after(seed: int) -> list[int]:
        repro_runtime.set_seed(seed)
        return answer(None)

    repro_runtime.init(42)
    child = repro_runtime.derive("request.0").seed63
    return {
        "switched": dataclasses.asdict(switched),
        "draws": [drawn, after_engine, (repro_runtime.set_seed(7), draws())[1]],
        "requests": [answer(child), answer(child)],
        "unseeded": [answer(None), answer(None)],
        "after_set_seed": [answer_after(7), answer_after(7), answer_after(8)],
        "fingerprint": repro_runtime.fingerprint(),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
