"""What `repro-image verify` costs beside the bare vLLM run of the same requests in the same image.

usage: python -m tests.bench.verify_cost [--image IMAGE] [--store DIR] [--rounds 3] [--json FILE]

Asks the image's latest epoch, in a copy of this project. Both start from the command line and end with the
container, in turns, under the same limits. A run that nobody times comes first: it brings the image and,
where this machine's class has no golden yet, records one.
Prints a row for README and, with --json, every figure.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from repro_image.adapters.files import Project
from repro_image.adapters.goldens import Goldens
from repro_image.adapters.ledger_files import Ledger
from repro_image.adapters.store import Store
from repro_image.core.golden import Golden, Prompt, recorded_continuations, recorded_request
from repro_image.core.reference import parse_reference
from repro_image.steps.record import laid_out_model
from repro_image.steps.verify import find_epoch
from tests.scratch import COMMAND, IMAGE, REPOSITORY

PLAIN_RUN = Path(__file__).with_name("plain_run.py")
BUDGET = 1.25


def main() -> None:
    parser = argparse.ArgumentParser(description="verify beside the bare vLLM run of the same requests")
    parser.add_argument("--image", default=IMAGE)
    parser.add_argument("--store", type=Path, default=Path.home() / ".cache/repro-image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("images", "requirements", "locks", "pyproject.toml"):
            subprocess.run(["cp", "-a", REPOSITORY / part, folder], check=True)
        tag = Ledger(folder / "locks" / asked.image, asked.image).read()[-1].epoch.tag
        tool = [str(COMMAND), "--project", name, "--store", str(asked.store)]
        seconds_of([*tool, "build", asked.image])
        seconds_of([*tool, "verify", tag, "--record"])
        cost = verify_cost(folder, tag, store=Store(asked.store), rounds=asked.rounds)
    if asked.json:
        asked.json.write_text(json.dumps(cost, indent=2) + "\n")
    verify, bare = cost["median_s"]["verify"], cost["median_s"]["bare"]
    what = f"verify beside the bare vLLM run of the same requests, suite {cost['suite']}"
    print(f"| {what} | {verify:.1f} s, {bare:.1f} s: {cost['ratio']:.2f} x | at most {BUDGET} x |")
    sys.exit(0 if cost["ratio"] <= BUDGET else 1)


def verify_cost(folder: Path, tag: str, *, store: Store, rounds: int) -> dict[str, Any]:
    """Return the seconds of both, run in turns, and how many times the bare run `verify` takes."""
    project = Project(folder)
    stored = find_epoch(project, parse_reference(tag))
    epoch = stored.epoch
    golden = Goldens(project.lock_folder(epoch.image_name) / "goldens").read(epoch.first_class.golden)
    seconds: dict[str, list[float]] = {"bare": [], "verify": []}
    with tempfile.TemporaryDirectory() as name, store.workspace() as workspace:
        model = laid_out_model(store, project.model_lock(epoch.image_name), workspace)
        requests = Path(name) / "requests.json"
        Path(name).chmod(0o755)
        engine = epoch.first_class.fingerprint.subject.engine
        requests.write_text(json.dumps({"engine": engine, "calls": list(calls_of(golden))}))
        spec = project.image(epoch.image_name).golden
        limits = ["--cpuset-cpus", epoch.first_class.fingerprint.recorded["cpuset"]]
        limits += ["--memory", f"{spec.memory_gib}g", "--env", f"OMP_NUM_THREADS={spec.threads}"]
        bare = bare_command(epoch.image.manifests[0].digest, requests, model, limits)
        verify = [str(COMMAND), "--project", str(folder), "--store", str(store.root), "verify", tag]
        for _ in range(rounds):
            for which, command in (("bare", bare), ("verify", verify)):
                seconds[which].append(seconds_of(command))
                print(f"{which}: {seconds[which][-1]} s", file=sys.stderr)
    medians = {which: round(median(times), 2) for which, times in seconds.items()}
    return {
        "seconds": seconds,
        "median_s": medians,
        "ratio": round(medians["verify"] / medians["bare"], 3),
        "budget": BUDGET,
        "suite": golden.request.suite,
        "tokens": golden.token_count,
    }


def calls_of(golden: Golden) -> Iterator[dict[str, Any]]:
    """Yield each call of the engine that a golden run makes, replay included."""
    request, answers = recorded_request(golden), recorded_continuations(golden)
    own = {lane.name: [prompt.id for prompt in lane.prompts] for lane in request.lanes}
    fed = {prompt.id: list(prompt.token_ids or ()) for lane in request.lanes for prompt in lane.prompts}
    replayed = {"max_tokens": 1, "prompt_logprobs": request.top_k, "detokenize": False}
    for lane in request.lanes:
        asked = [(fed[prompt.id], sampled(prompt, request.top_k)) for prompt in lane.prompts]
        for source in lane.replay_of:
            asked += [(fed[name] + list(answers[name]), replayed) for name in own[source]]
        for batch in [asked] if lane.together else [[one] for one in asked]:
            yield {"prompts": [ids for ids, _ in batch], "sampling": [settings for _, settings in batch]}


def sampled(prompt: Prompt, top_k: int) -> dict[str, Any]:
    """Return the arguments of vllm.SamplingParams that a golden run gives."""
    return {
        **msgspec.structs.asdict(prompt.sampling),
        "logprobs": top_k,
        "ignore_eos": True,
        "detokenize": False,
    }


def bare_command(image: str, requests: Path, model: Path, limits: list[str]) -> list[str]:
    mounts = [(PLAIN_RUN, "/plain_run.py"), (requests, "/requests.json"), (model, "/model")]
    command = [
        "docker",
        "run",
        "--rm",
        "--pull",
        "never",
        "--network",
        "none",
        "--read-only",
        "--cap-drop",
        "ALL",
    ]
    command += [
        "--security-opt",
        "no-new-privileges",
        "--tmpfs",
        "/tmp:exec,mode=1777",
        "--user",
        "1000:1000",
    ]
    command += ["--shm-size", "1g", "--env", "HOME=/tmp", *limits]
    for source, target in mounts:
        command += ["--mount", f"type=bind,source={source},target={target},readonly"]
    return [*command, image, "python3", "/plain_run.py", "/requests.json", "/model"]


def seconds_of(command: list[str]) -> float:
    begin = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return round(time.monotonic() - begin, 2)


if __name__ == "__main__":
    main()
