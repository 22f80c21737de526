import subprocess
import sys
from importlib.resources import files

import pytest

from repro_image.core.derive import derive, synthetic_ids
from repro_image.core.golden import GoldenRequest, Lane, expected_ids
from repro_image.core.suite import SUITES, NaturalPrompts, golden_request, left_out, parse_prompts
from repro_image.errors import InvalidFileError, UnknownSuiteError


@pytest.fixture(scope="module")
def prompts() -> NaturalPrompts:
    resource = files("repro_image") / "data" / "prompts.toml"
    return parse_prompts(resource.read_text(encoding="utf-8"), path="prompts.toml")


@pytest.fixture(scope="module")
def smoke(prompts: NaturalPrompts) -> GoldenRequest:
    return golden_request("smoke", seed=42, prompts=prompts, on_gpu=True)


def lane(request: GoldenRequest, name: str) -> Lane:
    (found,) = (lane for lane in request.lanes if lane.name == name)
    return found


def test_the_suites_are_pinned(prompts: NaturalPrompts) -> None:
    """Another digest here is a declared reseed: every golden has to be recorded again."""
    assert {
        suite: golden_request(suite, seed=42, prompts=prompts, on_gpu=True).digest for suite in SUITES
    } == {
        "full": "sha256:856bba34b24670f1f48c238ed11b7270a794322ced2292d92a9f115507b91c7f",
        "smoke": "sha256:27d6b4acb71cae5cad3eb61833723d690b10330a991091910c6311f7b6b7615f",
        "tiny": "sha256:7d1b28fbdacd07cdf80e9df277188179148b970eeb9fcbead2a459d821cbd5d1",
    }


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "0", "LC_ALL": "C", "TZ": "UTC"},
        {"PYTHONHASHSEED": "4711", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Apia"},
    ],
)
def test_a_new_process_asks_the_same_bytes_whatever_its_environment(
    prompts: NaturalPrompts, environment: dict[str, str]
) -> None:
    code = (
        "from repro_image.adapters.shipped import natural_prompts\n"
        "from repro_image.core.suite import SUITES, golden_request\n"
        "for suite in SUITES:\n"
        "    print(golden_request(suite, seed=2**63 - 1, prompts=natural_prompts(), on_gpu=True).digest)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    digests = [golden_request(suite, seed=2**63 - 1, prompts=prompts, on_gpu=True).digest for suite in SUITES]
    assert run.stdout.split() == digests


def test_smoke_asks_what_its_table_says(smoke: GoldenRequest) -> None:
    shapes = {
        lane.name: (len(lane.prompts), {p.sampling.max_tokens for p in lane.prompts}, lane.together)
        for lane in smoke.lanes
        if not lane.replay_of
    }
    assert shapes == {
        "greedy": (8, {48}, False),
        "sampled": (4, {48}, False),
        "stress": (2, {32}, False),
        "long": (1, {48}, False),
        "shape-alone": (3, {32}, False),
        "shape-together": (3, {32}, True),
    }
    assert (smoke.suite, smoke.root_seed, smoke.top_k) == ("smoke", 42, 5)
    assert lane(smoke, "replay").replay_of == ("greedy", "sampled")


def test_full_asks_what_its_table_says(prompts: NaturalPrompts) -> None:
    full = golden_request("full", seed=42, prompts=prompts, on_gpu=True)
    shapes = {
        lane.name: (len(lane.prompts), {p.sampling.max_tokens for p in lane.prompts})
        for lane in full.lanes
        if not lane.replay_of
    }
    assert shapes == {
        "greedy": (20, {256}),
        "greedy-synthetic": (44, {256}),
        "sampled": (16, {256}),
        "stress": (4, {256}),
        "long": (4, {512}),
        "shape-alone": (8, {64}),
        "shape-together": (8, {64}),
        "shape-prefix": (9, {32}),
        "invariant-alone": (8, {64}),
        "invariant-together": (8, {64}),
    }


def test_batch_invariant_lanes_ask_the_shape_prompts_of_an_engine_of_their_own(
    prompts: NaturalPrompts,
) -> None:
    full = golden_request("full", seed=42, prompts=prompts, on_gpu=True)
    alone, together = lane(full, "invariant-alone"), lane(full, "invariant-together")
    assert (alone.batch_invariant, together.batch_invariant) == (True, True)
    assert (alone.together, together.together) == (False, True)
    asked = [prompt.token_ids for prompt in lane(full, "shape-alone").prompts]
    assert [p.token_ids for p in alone.prompts] == [p.token_ids for p in together.prompts] == asked
    assert [found.name for found in full.lanes][-3:] == ["replay", "invariant-alone", "invariant-together"]


def test_the_cpu_is_asked_all_but_the_batch_invariant_lanes(prompts: NaturalPrompts) -> None:
    on_gpu = golden_request("full", seed=42, prompts=prompts, on_gpu=True)
    on_cpu = golden_request("full", seed=42, prompts=prompts, on_gpu=False)
    assert on_cpu.lanes == on_gpu.lanes[:-2]
    assert left_out("full", on_gpu=False) == ("invariant-alone", "invariant-together")
    assert left_out("full", on_gpu=True) == left_out("smoke", on_gpu=False) == ()
    smoke = [golden_request("smoke", seed=42, prompts=prompts, on_gpu=gpu) for gpu in (True, False)]
    assert smoke[0] == smoke[1]


def test_drawn_lengths_keep_their_range_and_are_pinned(prompts: NaturalPrompts) -> None:
    full = golden_request("full", seed=42, prompts=prompts, on_gpu=True)
    lengths = [len(p.token_ids or ()) for p in lane(full, "long").prompts]
    assert lengths == [831, 721, 1590, 807]
    assert all(16 <= len(p.token_ids or ()) <= 256 for p in lane(full, "greedy-synthetic").prompts)
    alone, together = lane(full, "shape-alone"), lane(full, "shape-together")
    assert [p.token_ids for p in alone.prompts] == [p.token_ids for p in together.prompts]


def test_shared_prefixes_are_shared_and_followed_by_something_else(prompts: NaturalPrompts) -> None:
    asked = [
        p.token_ids or ()
        for p in lane(golden_request("full", seed=42, prompts=prompts, on_gpu=True), "shape-prefix").prompts
    ]
    for first, length in enumerate((1, 511, 2048)):
        same = asked[first::3]
        assert [len(ids) for ids in same] == [length + 32] * 3
        assert len({ids[:length] for ids in same}) == 1
        assert len({ids[length:] for ids in same}) == 3


def test_sampled_prompts_have_their_own_pinned_seeds_of_63_bits(smoke: GoldenRequest) -> None:
    sampled = [p.sampling for p in lane(smoke, "sampled").prompts]
    assert [s.seed for s in sampled] == [
        4176486918915321417,
        7813662428773264022,
        6498069036683455877,
        4651185151675044192,
    ]
    assert {(s.temperature, s.top_p) for s in sampled} == {(1.0, 0.95)}
    stress = [p.sampling for p in lane(smoke, "stress").prompts]
    assert [s.seed for s in stress] == [1865515344558160041, 3568354042585106073]
    assert {(s.temperature, s.top_p) for s in stress} == {(2.0, 0.1)}


def test_greedy_prompts_draw_nothing(smoke: GoldenRequest) -> None:
    for name in ("greedy", "long", "shape-alone", "shape-together"):
        assert {(p.sampling.temperature, p.sampling.seed) for p in lane(smoke, name).prompts} == {(0.0, None)}


def test_the_long_prompt_is_synthetic_and_pinned(smoke: GoldenRequest) -> None:
    (prompt,) = lane(smoke, "long").prompts
    assert prompt.text is None
    assert prompt.token_ids is not None
    assert len(prompt.token_ids) == 700
    assert prompt.token_ids[:4] == (32647, 6227, 29959, 39750)
    assert prompt.token_ids == synthetic_ids(derive(42, "suite.smoke.long.0.token_ids"), 700)
    assert all(1000 <= number < 40_000 for number in prompt.token_ids)


def test_shape_lanes_ask_the_same_long_prompts_alone_and_together(smoke: GoldenRequest) -> None:
    alone, together = lane(smoke, "shape-alone"), lane(smoke, "shape-together")
    assert [p.text for p in alone.prompts] == [p.text for p in together.prompts]
    assert [p.sampling for p in alone.prompts] == [p.sampling for p in together.prompts]
    # Longer than a KV block of 128 tokens: SmolLM2's tokenizer makes 222, 238 and 159 tokens of them.
    assert [p.text is not None and len(p.text) for p in alone.prompts] == [561, 762, 662]


def test_no_natural_prompt_is_asked_twice_but_in_the_shape_lanes(
    smoke: GoldenRequest, prompts: NaturalPrompts
) -> None:
    asked = [p for lane in smoke.lanes if lane.name != "shape-together" for p in lane.prompts]
    whole = "\n".join(p.text for p in asked if p.text)
    assert all(whole.count(text.strip("\n")) <= 1 for text in prompts.texts)
    chats = [p.chat for p in asked if p.chat]
    assert len(set(chats)) == len(chats)


@pytest.mark.parametrize(
    ("suite", "chats"),
    [
        ("full", {"greedy": 6, "sampled": 5, "stress": 1}),
        ("smoke", {"greedy": 2, "sampled": 1}),
        ("tiny", {"greedy": 1}),
    ],
)
def test_each_suite_asks_some_of_its_prompts_as_chats(
    prompts: NaturalPrompts, suite: str, chats: dict[str, int]
) -> None:
    lanes = golden_request(suite, seed=42, prompts=prompts, on_gpu=True).lanes
    found = {lane.name: sum(p.chat is not None for p in lane.prompts) for lane in lanes}
    assert {name: count for name, count in found.items() if count} == chats


def test_chats_end_with_what_the_assistant_answers_to(prompts: NaturalPrompts) -> None:
    assert len(prompts.chats) >= 12
    assert {chat[-1].role for chat in prompts.chats} == {"user"}


def test_every_prompt_id_is_unique_and_replays_are_named_after_their_source(smoke: GoldenRequest) -> None:
    ids = expected_ids(smoke)
    assert len(ids) == len(set(ids)) == 33
    assert ids[:2] == ["greedy/000", "greedy/001"]
    assert ids[-1] == "replay/sampled/003"


def test_tiny_asks_64_tokens(prompts: NaturalPrompts) -> None:
    tiny = golden_request("tiny", seed=42, prompts=prompts, on_gpu=True)
    asked = [p.sampling for lane in tiny.lanes for p in lane.prompts]
    assert [(s.max_tokens, s.temperature) for s in asked] == [(16, 0.0), (16, 0.0), (16, 1.0), (16, 1.0)]


def test_another_root_seed_changes_prompts_and_seeds(prompts: NaturalPrompts, smoke: GoldenRequest) -> None:
    other = golden_request("smoke", seed=43, prompts=prompts, on_gpu=True)
    for name in ("greedy", "sampled", "stress", "long", "shape-alone"):
        assert lane(other, name) != lane(smoke, name)
    assert other.digest != smoke.digest


def test_prompts_are_many_varied_and_without_repeats(prompts: NaturalPrompts) -> None:
    assert len(prompts.texts) >= 32
    assert len(set(prompts.texts)) == len(prompts.texts)


def test_an_unknown_suite_is_refused_with_the_known_ones(prompts: NaturalPrompts) -> None:
    with pytest.raises(UnknownSuiteError) as caught:
        golden_request("smok", seed=42, prompts=prompts, on_gpu=True)
    assert str(caught.value) == (
        "there is no suite 'smok' (known: full, smoke, tiny)\n"
        "  where: [golden] suite in image.toml\n"
        "  fix:   name one of the known suites, or `suite.toml` for one of the image's own"
    )
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("texts", "chats", "kind"), [(2, 12, "2 prompts"), (40, 0, "0 chats")])
def test_too_few_prompts_are_a_bug(prompts: NaturalPrompts, texts: int, chats: int, kind: str) -> None:
    few = NaturalPrompts(texts=prompts.texts[:texts], chats=prompts.chats[:chats])
    with pytest.raises(ValueError, match=f"{kind} are too few for suite tiny"):
        golden_request("tiny", seed=42, prompts=few, on_gpu=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("format = 2\nprompts = []\nchats = []", "Invalid enum value 2"),
        ("format = 1\nchats = []", "missing required field `prompts`"),
        ('format = 1\nchats = []\n[[prompts]]\nkind = "a"\ntext = "x"\nmore = 1', "unknown field `more`"),
        ('format = 1\nchats = []\n[[prompts]]\nkind = "a"\ntext = ""', "a prompt is empty or there twice"),
        (
            'format = 1\nchats = []\nprompts = [{kind="a", text="x"}, {kind="b", text="x"}]',
            "a prompt is empty or there twice",
        ),
        (
            'format = 1\nprompts = []\nchats = [{kind="a", messages=[]}]',
            "a prompt is empty or there twice",
        ),
        (
            'format = 1\nprompts = []\nchats = [{kind="a", messages=[{role="robot", content="x"}]}]',
            "Invalid enum value 'robot' - at `$.chats[0].messages[0].role`",
        ),
        ("format =", "Invalid value"),
    ],
)
def test_a_wrong_prompt_file_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        parse_prompts(text, path="prompts.toml")
    assert words in caught.value.what
    assert caught.value.where == "prompts.toml"
