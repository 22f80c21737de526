"""Every reason that verify gives, reached by a real cause; the recorded golden is never edited."""

import base64
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from repro_image.adapters.engine import ROOT_REPOSITORY
from repro_image.adapters.store import Store
from repro_image.core.derive import synthetic_ids
from tests.changed_models import (
    ChangedModel,
    flip_one_bit,
    forget_merges,
    model_files,
    put_one_nan,
    reword_chat_template,
    round_to_int8,
    shorten_rotations,
)
from tests.e2e.conftest import Recorded
from tests.scratch import IMAGE, Scratch, docker

_BLOCK = 128  # tokens of one block of the KV cache, as image.toml sets it
_LANE = """
[[lanes]]
name = "{name}"
together = {together}
max_tokens = {tokens}
prompts = {prompts}
"""

# Python runs sitecustomize.py at its start. Every answer is off by one number of each process.
_NOISE = """
import importlib.util, os, sys
class Noise:
    def find_spec(self, name, path, target=None):
        if name != "vllm.v1.sample.sampler" or "NOISE" not in os.environ:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load, off = spec.loader.exec_module, int.from_bytes(os.urandom(3), "big") / 2**34
        def exec_module(module):
            load(module)
            exact = module.Sampler.compute_logprobs
            module.Sampler.compute_logprobs = staticmethod(lambda logits: exact(logits) - off)
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Noise())
"""
_LAST_STEP = "    find /out -exec touch"
_NOISE_STEP = (
    '    mkdir -p "/out/$SOURCE_DATE_EPOCH/opt/env"; \\\n'
    f"    echo {base64.b64encode(_NOISE.encode()).decode()} | base64 -d"
    ' >"/out/$SOURCE_DATE_EPOCH/opt/env/sitecustomize.py"; \\\n'
)

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def shapes(epoch: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The same image with an epoch of a suite of its own, whose prompts tell causes apart.

    Most repeat themselves, so that the model is sure how they go on, and are asked together; some are longer
    than two blocks of the KV cache, which they share. What is left of four of these is one token: every
    processor's kernels compute a single row otherwise than many, and not every one's 44 than 300.
    """
    crowd = [(synthetic_ids(seed, 4) * 8)[: 20 + seed] for seed in range(12)]
    beginning = synthetic_ids(100, 2 * _BLOCK)
    shared = [beginning + synthetic_ids(seed, 44) for seed in (101, 102)]
    shared += [beginning + synthetic_ids(seed, 1) for seed in range(103, 107)]
    lanes = [_lane(f"together-{number}", crowd, tokens=3, together=True) for number in range(4)]
    return _with_suite(epoch, tmp_path_factory.mktemp("shapes"), *lanes, _lane("prefix", shared, tokens=8))


def _with_suite(epoch: Recorded, folder: Path, *lanes: str, noise: bool = False) -> Recorded:
    """Record an epoch of the same image in a project of its own, with a suite of these lanes.

    noise: let the image's Python draw at random where it is told to.
    """
    scratch = Scratch(folder, epoch.scratch.store)
    settings = scratch.folder / "pyproject.toml"
    text = settings.read_text()
    settings.write_text(text.replace('repository = "repro-image"', 'repository = "repro-image-test"'))
    scratch.change_image('suite = "smoke"', 'suite = "suite.toml"')
    scratch.image_toml.with_name("suite.toml").write_text("".join(["format = 1\n", *lanes]))
    if noise:
        template = scratch.image_toml.with_name("Dockerfile.j2")
        text = template.read_text()
        assert _LAST_STEP in text
        template.write_text(text.replace(_LAST_STEP, _NOISE_STEP + _LAST_STEP))
    build = scratch.run("build", IMAGE, "--json")
    assert build.code == 0, build.err
    return Recorded(scratch, build, build.json[0]["reference"], build.json[0]["config"])


def _lane(name: str, prompts: Iterable[tuple[int, ...]], *, tokens: int, together: bool = False) -> str:
    """Return a lane of suite.toml; prompts of token ids are the same for every tokenizer."""
    listed = ", ".join(f"{{ token_ids = {list(ids)} }}" for ids in prompts)
    return _LANE.format(name=name, together=str(together).lower(), tokens=tokens, prompts=f"[{listed}]")


def test_the_suite_decides_nothing_about_the_image(epoch: Recorded, shapes: Recorded) -> None:
    assert shapes.config == epoch.config


def what_if(recorded: Recorded, *arguments: str, code: int) -> Any:
    """Return the comparison that ``verify`` prints, having ended with ``code``."""
    found = recorded.scratch.run("verify", recorded.tag, *arguments, "--json")
    assert found.code == code, found.out + found.err
    return found.json["comparison"]


def mismatch(recorded: Recorded, *arguments: str) -> Any:
    comparison = what_if(recorded, *arguments, code=10)
    assert comparison["verdict"] == "mismatch"
    return comparison


def differing(comparison: Any) -> dict[str, int]:
    """Level -> prompts that differ at it."""
    return {row["level"]: row["differing"] for row in comparison["levels"]}


def changed_lanes(comparison: Any) -> set[str]:
    """Lanes with a prompt that differs at any level."""
    return {row["lane"] for row in comparison["prompts"] if not all(row["equal"].values())}


def changed_model(recorded: Recorded, folder: Path, change: Callable[[ChangedModel], None]) -> str:
    model = ChangedModel(recorded.scratch, folder)
    change(model)
    return str(model.folder)


# Weights


@pytest.mark.parametrize(
    ("change", "tensors"),
    [(flip_one_bit, 1), (round_to_int8, 121)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_changed_weights_are_found_as_weights_with_the_tensors_counted(
    epoch: Recorded, tmp_path: Path, change: Callable[[ChangedModel], None], tensors: int
) -> None:
    found = mismatch(epoch, "--model", changed_model(epoch, tmp_path, change))
    assert found["reason"] == "weights"
    assert found["weights"]["differing"] == tensors
    assert len(found["weights"]["names"]) == min(tensors, 5)


def test_another_dtype_is_found_as_weights_since_every_tensor_is_loaded_otherwise(epoch: Recorded) -> None:
    found = mismatch(epoch, "--set", "dtype=float32")
    assert found["reason"] == "weights"
    assert found["weights"]["differing"] == found["weights"]["tensors"]


# Model; another sampling seed is in test_verify_reports.py


def test_another_model_with_the_same_weights_is_found_as_model(shapes: Recorded, tmp_path: Path) -> None:
    found = mismatch(shapes, "--model", changed_model(shapes, tmp_path, shorten_rotations))
    assert found["reason"] == "model"
    assert found["weights"] is None
    assert found["first"]["divergence"]["position"] < 3
    assert found["first"]["divergence"]["expected"]["margin_nats"] > 1


# Tokenizer


@pytest.mark.parametrize(
    ("change", "prompt"), [(forget_merges, "greedy/000"), (reword_chat_template, "greedy/001")]
)
def test_a_changed_tokenizer_or_chat_template_is_not_comparable_and_the_first_id_is_named(
    epoch: Recorded, tmp_path: Path, change: Callable[[ChangedModel], None], prompt: str
) -> None:
    found = what_if(epoch, "--model", changed_model(epoch, tmp_path, change), code=11)
    assert (found["verdict"], found["reason"]) == ("not comparable", "tokenizer")
    assert found["tokenizer"]["prompt"] == prompt
    assert found["tokenizer"]["expected"] != found["tokenizer"]["found"]


# The way of working


def test_requests_that_are_batched_instead_of_asked_one_by_one_are_found_where_they_were_together(
    shapes: Recorded,
) -> None:
    found = mismatch(shapes, "--set", "max_num_seqs=8")
    assert found["reason"] == "numeric"
    assert changed_lanes(found) == {f"together-{number}" for number in range(4)}
    assert found["weights"] is None
    assert found["differences"]["largest_nats"] > 0


def test_a_prefix_cache_is_found_in_the_second_prompt_with_the_same_beginning(shapes: Recorded) -> None:
    found = mismatch(shapes, "--set", "enable_prefix_caching=true")
    assert found["reason"] == "numeric"


def test_chunked_prefill_is_found_in_the_prompts_longer_than_a_chunk(shapes: Recorded) -> None:
    found = mismatch(shapes, "--set", "enable_chunked_prefill=true", "--set", "max_num_batched_tokens=256")
    assert found["reason"] == "numeric"
    assert changed_lanes(found) == {"prefix"}


# Another class


def test_another_thread_count_is_not_comparable_and_the_field_is_named(epoch: Recorded) -> None:
    found = what_if(epoch, "--set", "threads=1", code=11)
    assert (found["verdict"], found["reason"]) == ("not comparable", "class")
    assert {"field": "threads", "expected": 2, "found": 1} in found["class_differences"]


def test_another_instruction_set_is_another_class_with_equal_ids_and_other_bits(epoch: Recorded) -> None:
    """Token ids alone are a weak fingerprint."""
    found = what_if(epoch, "--set", "env.ATEN_CPU_CAPABILITY=avx2", "--across", code=12)
    assert found["verdict"] == "drift"
    assert [row["field"] for row in found["class_differences"]] == ["capability"]
    assert found["weights"] is None
    assert differing(found)["H1"] == 0
    assert differing(found)["H3"] > 0


# Unstable


def test_not_a_number_is_unstable(epoch: Recorded, tmp_path: Path) -> None:
    found = mismatch(epoch, "--model", changed_model(epoch, tmp_path, put_one_nan))
    assert found["reason"] == "unstable"
    assert "NaN" in found["detail"]


def test_an_image_that_draws_at_random_is_unstable(epoch: Recorded, tmp_path: Path) -> None:
    """Its Python draws a number of the system's at each start, once the variable NOISE is set."""
    noisy = _with_suite(epoch, tmp_path, _lane("one", [synthetic_ids(1, 20)], tokens=4), noise=True)
    assert noisy.config != epoch.config
    found = mismatch(noisy, "--set", "env.NOISE=1", "--repeat", "2")
    assert found["reason"] == "unstable"
    assert "disagrees with itself in a new container: tokens same, bits differ" in found["detail"]
    assert "first in one/000 at token 0 of 4, at most " in found["detail"]
    assert differing(found) == {"H0": 0, "H1": 0, "H2": 0, "H3": 1}
    with_noise = noisy.scratch.image_toml.read_text().replace(
        "[golden.environment]\n", '[golden.environment]\nNOISE = "1"\n'
    )
    noisy.scratch.image_toml.write_text(with_noise)
    refused = noisy.scratch.run("build", IMAGE)
    assert refused.code == 10, refused.out + refused.err
    assert "nothing was recorded: the image disagrees with itself in a new container" in refused.err
    assert [path.name for path in (noisy.scratch.locks / "epochs").glob("0*")] == ["0001"]


# Refused before anything runs


def test_a_retagged_image_is_a_mismatch_with_both_digests(epoch: Recorded) -> None:
    manifest = docker("image", "inspect", "--format", "{{.Id}}", epoch.reference)
    root = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", ROOT_REPOSITORY).split()[0]
    kept = f"{epoch.reference.rpartition(':')[0]}:kept"
    docker("image", "tag", manifest, kept)
    docker("image", "tag", root, epoch.reference)
    try:
        found = epoch.scratch.run("verify", epoch.tag, "--json")
    finally:
        docker("image", "tag", kept, epoch.reference)
    assert found.code == 10, found.err
    comparison = found.json["comparison"]
    assert comparison["reason"] == "moved tag"
    assert comparison["images"]["expected"] == epoch.config
    assert comparison["images"]["found"].startswith("sha256:")
    assert comparison["images"]["found"] != epoch.config


def test_a_corrupt_model_file_is_refused_before_anything_runs(epoch: Recorded, tmp_path: Path) -> None:
    store, copy = Store(epoch.scratch.store), Store(tmp_path / "store")
    for digest in model_files(epoch.scratch).values():
        copy.add(store.path(digest))
    broken = copy.path(model_files(epoch.scratch)["config.json"])
    broken.write_bytes(broken.read_bytes().replace(b"silu", b"gelu"))
    found = epoch.scratch.run("verify", epoch.tag, store=copy.root)
    assert found.code == 3
    assert "corrupt" in found.err
    assert "golden run" not in found.err


def test_a_cut_ledger_file_is_refused_before_anything_runs(epoch: Recorded, tmp_path: Path) -> None:
    torn = Scratch(tmp_path / "torn", epoch.scratch.store)
    shutil.copytree(epoch.scratch.locks, torn.locks, dirs_exist_ok=True)
    record = torn.locks / "epochs/0001/epoch.json"
    record.write_bytes(record.read_bytes()[:-100])
    for command in (["verify", epoch.tag], ["build", IMAGE], ["epochs", "list"], ["epochs", "check"]):
        found = torn.run(*command)
        assert found.code == 6, (command, found.out, found.err)
        assert "0001/epoch.json" in found.err
