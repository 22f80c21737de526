"""What somebody would write who only wants the answers: vLLM, the requests, nothing kept or checked.

usage: python plain_run.py REQUESTS.json MODEL_FOLDER

REQUESTS.json: {"engine": arguments of vllm.LLM, "calls": [{"prompts": [ids], "sampling": [arguments]}]}
"""

import json
import sys
from pathlib import Path

import vllm


def main(requests: str, model: str) -> None:
    asked = json.loads(Path(requests).read_text())
    llm = vllm.LLM(model=model, tokenizer=model, **asked["engine"])
    tokens = 0
    for call in asked["calls"]:
        results = llm.generate(
            [{"prompt_token_ids": ids} for ids in call["prompts"]],
            [vllm.SamplingParams(**sampling) for sampling in call["sampling"]],
            use_tqdm=False,
        )
        tokens += sum(len(result.outputs[0].token_ids) for result in results)
    print(json.dumps({"tokens": tokens}))


if __name__ == "__main__":
    main(*sys.argv[1:])
