"""What vLLM's ``seed`` moves and what it leaves alone. Runs inside the image; prints JSON as its last line.

usage: python observe_seeds.py MODEL_FOLDER ENGINE_JSON

Each engine starts in a fork of a process that has only imported vLLM: imports are most of a start.
"""

import json
import os
import random
import sys
from typing import Any

PROMPT = list(range(1000, 1024))


def main(model: str, engine: str) -> None:
    settings = {"model": model, "tokenizer": model, **json.loads(engine)}
    del settings["seed"]
    import vllm  # noqa: F401 - once for all forks

    seen = {
        "unset": in_fork(settings, seed=None),
        "default": in_fork(settings, user_seed=123),
        "zero": in_fork(settings, user_seed=456, seed=0),
        "seven": in_fork(settings, user_seed=123, seed=7),
        "own_process": in_fork(settings, user_seed=123, seed=7, engine_process=True),
    }
    print(json.dumps(seen), flush=True)
    os._exit(0)  # vLLM's own exit handlers wait for threads


def in_fork(settings: dict[str, Any], **case: Any) -> Any:
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        with os.fdopen(write, "w") as out:
            json.dump(observe(settings, **case), out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as seen:
        return json.load(seen)


def observe(
    settings: dict[str, Any], *, user_seed: int = 0, engine_process: bool = False, **seed: int | None
) -> dict[str, Any]:
    """Return an engine's seed and answers, and what the user's generators, seeded before, draw after it."""
    import vllm

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(engine_process))
    seed_generators(user_seed)
    try:
        llm = vllm.LLM(**settings, **seed)
    except ValueError as error:
        return {"refused": str(error)}
    drawn = draws()

    def answer(temperature: float, request_seed: int | None) -> list[Any]:
        sampling = vllm.SamplingParams(
            temperature=temperature, seed=request_seed, max_tokens=8, ignore_eos=True, logprobs=1
        )
        (result,) = llm.generate([{"prompt_token_ids": PROMPT}], sampling, use_tqdm=False)
        output = result.outputs[0]
        odds = [
            entries[token].logprob for token, entries in zip(output.token_ids, output.logprobs, strict=True)
        ]
        return [list(output.token_ids), odds]

    return {
        "seed": llm.llm_engine.model_config.seed,
        "draws": drawn,
        "greedy": answer(0.0, None),
        "request_seed": answer(1.0, 42),
        "unseeded": [answer(1.0, None)[0], answer(1.0, None)[0]],
        "draws_by_hand": {str(hand): draws_after(hand) for hand in (0, 7, 123)},
    }


def draws_after(seed: int) -> dict[str, float]:
    seed_generators(seed)
    return draws()


def seed_generators(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def draws() -> dict[str, float]:
    import numpy as np
    import torch

    return {"python": random.random(), "numpy": float(np.random.rand()), "torch": float(torch.rand(1))}  # noqa: S311


if __name__ == "__main__":
    main(*sys.argv[1:])
