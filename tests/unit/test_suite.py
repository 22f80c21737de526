from importlib.resources import files

import pytest

from repro_image.core.derive import derive
from repro_image.core.golden import GoldenRequest, Lane, expected_ids
from repro_image.core.suite import SUITES, golden_request, parse_prompts, synthetic_ids
from repro_image.errors import InvalidFileError, UnknownSuiteError


@pytest.fixture(scope="module")
def prompts() -> tuple[str, ...]:
    resource = files("repro_image") / "data" / "prompts.toml"
    return parse_prompts(resource.read_text(encoding="utf-8"), path="prompts.toml")


@pytest.fixture(scope="module")
def smoke(prompts: tuple[str, ...]) -> GoldenRequest:
    return golden_request("smoke", seed=42, prompts=prompts)


def lane(request: GoldenRequest, name: str) -> Lane:
    (found,) = (lane for lane in request.lanes if lane.name == name)
    return found


def test_the_suites_are_pinned(prompts: tuple[str, ...]) -> None:
    """Another digest here is a declared reseed: every golden has to be recorded again."""
    assert {suite: golden_request(suite, seed=42, prompts=prompts).digest for suite in SUITES} == {
        "full": "sha256:76333509f05833fe2c330132dce88f8022dfe8cb39e815b187e0b60d2134fd66",
        "smoke": "sha256:9254b12772eebc16bc00bad42bbab03bbc6fe44ac78598bbd92be50531bacdef",
        "tiny": "sha256:fb24b3cbf3f46971881475ff8f5a4c1102718f2a1f2d89121465586a105bf8f6",
    }


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


def test_full_asks_what_its_table_says(prompts: tuple[str, ...]) -> None:
    full = golden_request("full", seed=42, prompts=prompts)
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
    }


def test_drawn_lengths_keep_their_range_and_are_pinned(prompts: tuple[str, ...]) -> None:
    full = golden_request("full", seed=42, prompts=prompts)
    lengths = [len(p.token_ids or ()) for p in lane(full, "long").prompts]
    assert lengths == [831, 721, 1590, 807]
    assert all(16 <= len(p.token_ids or ()) <= 256 for p in lane(full, "greedy-synthetic").prompts)
    alone, together = lane(full, "shape-alone"), lane(full, "shape-together")
    assert [p.token_ids for p in alone.prompts] == [p.token_ids for p in together.prompts]


def test_shared_prefixes_are_shared_and_followed_by_something_else(prompts: tuple[str, ...]) -> None:
    asked = [
        p.token_ids or ()
        for p in lane(golden_request("full", seed=42, prompts=prompts), "shape-prefix").prompts
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
    assert [p.text is not None and len(p.text) for p in alone.prompts] == [556, 835, 528]


def test_no_natural_prompt_is_asked_twice_but_in_the_shape_lanes(
    smoke: GoldenRequest, prompts: tuple[str, ...]
) -> None:
    texts = [p.text for lane in smoke.lanes if lane.name != "shape-together" for p in lane.prompts if p.text]
    whole = "\n".join(texts)
    assert all(whole.count(prompt.strip("\n")) <= 1 for prompt in prompts)


def test_every_prompt_id_is_unique_and_replays_are_named_after_their_source(smoke: GoldenRequest) -> None:
    ids = expected_ids(smoke)
    assert len(ids) == len(set(ids)) == 33
    assert ids[:2] == ["greedy/000", "greedy/001"]
    assert ids[-1] == "replay/sampled/003"


def test_tiny_asks_64_tokens(prompts: tuple[str, ...]) -> None:
    tiny = golden_request("tiny", seed=42, prompts=prompts)
    asked = [p.sampling for lane in tiny.lanes for p in lane.prompts]
    assert [(s.max_tokens, s.temperature) for s in asked] == [(16, 0.0), (16, 0.0), (16, 1.0), (16, 1.0)]


def test_another_root_seed_changes_prompts_and_seeds(prompts: tuple[str, ...], smoke: GoldenRequest) -> None:
    other = golden_request("smoke", seed=43, prompts=prompts)
    for name in ("greedy", "sampled", "stress", "long", "shape-alone"):
        assert lane(other, name) != lane(smoke, name)
    assert other.digest != smoke.digest


def test_prompts_are_many_varied_and_without_repeats(prompts: tuple[str, ...]) -> None:
    assert len(prompts) >= 32
    assert len(set(prompts)) == len(prompts)


def test_synthetic_ids_are_pinned_and_of_the_length_asked() -> None:
    assert synthetic_ids(7521479737366565015, 3) == (1956, 16703, 10970)
    assert synthetic_ids(1, 0) == ()


def test_an_unknown_suite_is_refused_with_the_known_ones(prompts: tuple[str, ...]) -> None:
    with pytest.raises(UnknownSuiteError) as caught:
        golden_request("smok", seed=42, prompts=prompts)
    assert str(caught.value) == (
        "there is no suite 'smok' (known: full, smoke, tiny)\n"
        "  where: [golden] suite in image.toml\n"
        "  fix:   name one of the known suites"
    )
    assert caught.value.exit_code == 3


def test_too_few_prompts_are_a_bug() -> None:
    with pytest.raises(ValueError, match="2 natural prompts are too few for suite tiny"):
        golden_request("tiny", seed=42, prompts=("a", "b"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("format = 2\nprompts = []", "Invalid enum value 2"),
        ("format = 1", "missing required field `prompts`"),
        ('format = 1\n[[prompts]]\nkind = "a"\ntext = "x"\nmore = 1', "unknown field `more`"),
        ('format = 1\n[[prompts]]\nkind = "a"\ntext = ""', "a prompt is empty or there twice"),
        (
            'format = 1\nprompts = [{kind="a", text="x"}, {kind="b", text="x"}]',
            "a prompt is empty or there twice",
        ),
        ("format =", "Invalid value"),
    ],
)
def test_a_wrong_prompt_file_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        parse_prompts(text, path="prompts.toml")
    assert words in caught.value.what
    assert caught.value.where == "prompts.toml"
