"""core/own_suite.py and what steps/plan.py makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from repro_image.adapters.files import Project
from repro_image.core.derive import derive63
from repro_image.core.golden import Message, expected_ids
from repro_image.core.own_suite import parse_own_suite
from repro_image.errors import InvalidFileError
from repro_image.steps.plan import request_of
from tests.scratch import REPOSITORY

PATH = "images/mine/suite.toml"
EXAMPLE = """
format = 1

[[lanes]]
name = "facts"
max_tokens = 64
prompts = [
  { text = "The capital of Norway is" },
  { chat = [
    { role = "system", content = "You answer with one word." },
    { role = "user", content = "What is the opposite of north?" },
  ] },
  { token_ids = [1, 2, 3] },
]

[[lanes]]
name = "sampled"
max_tokens = 32
temperature = 1
top_p = 0.9
together = true
prompts = [{ text = "Once upon a time" }, { text = "In the year 2050" }]

[[lanes]]
name = "replay"
replay_of = ["facts", "sampled"]
"""


def test_the_suite_in_readme_is_one() -> None:
    blocks = (REPOSITORY / "README.md").read_text().split("```toml\n")[1:]
    (suite,) = (block.partition("```")[0] for block in blocks if "[[lanes]]" in block)
    assert [lane.name for lane in parse_own_suite(suite, seed=42, path=PATH).lanes] == [
        "greedy",
        "sampled",
        "replay",
    ]


def test_a_worked_example_is_asked_as_it_is_written() -> None:
    request = parse_own_suite(EXAMPLE, seed=7, path=PATH)
    facts, sampled, replay = request.lanes
    assert (request.suite, request.root_seed, request.top_k) == ("own", 7, 5)
    assert [p.text for p in facts.prompts] == ["The capital of Norway is", None, None]
    assert facts.prompts[1].chat == (
        Message(role="system", content="You answer with one word."),
        Message(role="user", content="What is the opposite of north?"),
    )
    assert facts.prompts[2].token_ids == (1, 2, 3)
    assert {(p.sampling.max_tokens, p.sampling.temperature, p.sampling.seed) for p in facts.prompts} == {
        (64, 0.0, None)
    }
    assert (sampled.together, sampled.prompts[0].sampling.top_p) == (True, 0.9)
    assert replay.replay_of == ("facts", "sampled")
    assert expected_ids(request)[-2:] == ["replay/sampled/000", "replay/sampled/001"]


def test_its_digest_is_pinned() -> None:
    """Another one here means that every user's goldens have to be recorded again."""
    digest = parse_own_suite(EXAMPLE, seed=42, path=PATH).digest
    assert digest == "sha256:a482003dabf5e23e9f3e6dffcaf3bf4373254a530775914d83262f23a1a5935f"


def test_seeds_are_named_children_of_the_root_seed() -> None:
    _, sampled, _ = parse_own_suite(EXAMPLE, seed=42, path=PATH).lanes
    assert [p.sampling.seed for p in sampled.prompts] == [
        derive63(42, "suite.own.sampled.0.sampling"),
        derive63(42, "suite.own.sampled.1.sampling"),
    ]
    assert [p.sampling.seed for p in sampled.prompts] == [6691675691648916098, 4894763672001345095]


def inline(value: Any) -> str:
    """Return ``value`` as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {inline(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


def lane(**fields: Any) -> str:
    """Return a suite of one lane, with ``fields`` changed; None removes one."""
    whole = {"name": "a", "max_tokens": 1, "prompts": [{"text": "x"}], **fields}
    kept = {name: value for name, value in whole.items() if value is not None}
    return f"format = 1\nlanes = {inline([kept])}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing required field `format`"),
        ("format = 1", "missing required field `lanes`"),
        ("format = 1\nlanes = []", "Expected `array` of length >= 1 - at `$.lanes`"),
        (lane(seed=4), "unknown field `seed` - at `$.lanes[0]`"),
        (lane(prompts=[{"text": "x", "seed": 3}]), "unknown field `seed` - at `$.lanes[0].prompts[0]`"),
        (lane(prompts=[{"text": "x"}, {"text": 3}]), "got `int` - at `$.lanes[0].prompts[1].text`"),
        (lane(prompts=[{"text": ""}]), "length >= 1 - at `$.lanes[0].prompts[0].text`"),
        (lane(prompts=[{}]), "a prompt needs a text, a chat or token ids - at `$.lanes[0].prompts[0]`"),
        (
            lane(prompts=[{"text": "x", "chat": [{"role": "user", "content": "y"}]}]),
            "a prompt is a text or a chat, not both - at `$.lanes[0].prompts[0]`",
        ),
        (
            lane(prompts=[{"chat": [{"role": "robot", "content": "y"}]}]),
            "Invalid enum value 'robot' - at `$.lanes[0].prompts[0].chat[0].role`",
        ),
        (lane(prompts=[{"token_ids": [-1]}]), "at `$.lanes[0].prompts[0].token_ids[0]`"),
        (lane(max_tokens=0), "Expected `int` >= 1 - at `$.lanes[0].max_tokens`"),
        (lane(max_tokens=None), "max_tokens belongs to prompts"),
        (lane(temperature=2.1), "Expected `float` <= 2.0 - at `$.lanes[0].temperature`"),
        (lane(temperature=-0.1), "Expected `float` >= 0.0 - at `$.lanes[0].temperature`"),
        (lane(temperature=0.001), "vLLM raises a temperature below 0.01 to 0.01"),
        (lane(top_p=0.0), "Expected `float` > 0.0 - at `$.lanes[0].top_p`"),
        (lane(top_p=1.5), "Expected `float` <= 1.0 - at `$.lanes[0].top_p`"),
        (lane(name="A lane"), "at `$.lanes[0].name`"),
        (lane(replay_of=["a"]), "a lane has either prompts or replay_of - at `$.lanes[0]`"),
        (lane(prompts=[]), "a lane has either prompts or replay_of - at `$.lanes[0]`"),
        (lane(prompts=None, max_tokens=None, replay_of=["b"]), "lane a must replay earlier lanes"),
        (lane(prompts=None, replay_of=["b"]), "max_tokens belongs to prompts"),
        (lane(prompts=None, max_tokens=None, replay_of=["b"], temperature=1.0), "a replay draws nothing"),
        (lane(max_tokens=2**20 + 1), "it asks and feeds 1048577 tokens, more than 1048576"),
        (lane() + lane().replace("format = 1", ""), "Cannot overwrite a value"),
        ("format = ", "Invalid"),
    ],
)
def test_a_wrong_suite_is_refused_with_the_key_path(text: str, words: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        parse_own_suite(text, seed=42, path=PATH)
    assert words in caught.value.what
    assert (caught.value.where, caught.value.exit_code) == (PATH, 3)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with the CPU image, whose suite is its own."""
    folder = tmp_path / "images" / "vllm-cpu"
    folder.mkdir(parents=True)
    text = (REPOSITORY / "images/vllm-cpu/image.toml").read_text()
    (folder / "image.toml").write_text(text.replace('suite = "smoke"', 'suite = "suite.toml"'))
    (folder / "suite.toml").write_text(EXAMPLE)
    (tmp_path / "pyproject.toml").write_text("[tool.repro-image]\n")
    return Project(tmp_path)


def change(project: Project, file: str, old: str, new: str) -> None:
    path = project.root / "images/vllm-cpu" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def asked(project: Project) -> Any:
    return request_of(project, "vllm-cpu", project.image("vllm-cpu"))


def refused(project: Project) -> InvalidFileError:
    with pytest.raises(InvalidFileError) as caught:
        asked(project)
    assert caught.value.exit_code == 3
    return caught.value


def test_an_image_may_name_its_own_suite(project: Project) -> None:
    assert asked(project) == parse_own_suite(EXAMPLE, seed=42, path=PATH)


def test_another_word_in_the_suite_is_another_input(project: Project) -> None:
    before = asked(project).digest
    change(project, "suite.toml", "Norway", "Sweden")
    assert asked(project).digest != before


def test_a_missing_suite_is_named(project: Project) -> None:
    (project.root / "images/vllm-cpu/suite.toml").unlink()
    error = refused(project)
    assert (error.what, error.where) == (
        "the suite is missing that image.toml names",
        "images/vllm-cpu/suite.toml",
    )


def test_a_wrong_suite_is_refused_at_its_place(project: Project) -> None:
    change(project, "suite.toml", "top_p = 0.9", "top_p = 9")
    error = refused(project)
    assert "at `$.lanes[1].top_p`" in error.what
    assert error.where == "images/vllm-cpu/suite.toml"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('PYTHONHASHSEED = "0"', 'VLLM_BATCH_INVARIANT = "1"', "dies at the first token"),
        ("max_model_len = 1024", "max_model_len = 64", "facts/002 needs 68 tokens"),
        ("max_model_len = 1024", "max_model_len = 1024\nmax_logprobs = 3", "5 are recorded"),
        (
            'VLLM_ENABLE_V1_MULTIPROCESSING = "0"',
            'VLLM_ENABLE_V1_MULTIPROCESSING = "1"',
            'VLLM_ENABLE_V1_MULTIPROCESSING` is not "0"',
        ),
    ],
)
def test_settings_that_cannot_answer_are_refused_before_anything_is_built(
    project: Project, old: str, new: str, words: str
) -> None:
    change(project, "image.toml", old, new)
    error = refused(project)
    assert words in error.what
    assert error.where == "images/vllm-cpu/image.toml"


def test_a_batch_invariant_lane_is_refused_on_the_cpu(project: Project) -> None:
    change(project, "suite.toml", "together = true", "together = true\nbatch_invariant = true")
    change(project, "suite.toml", '["facts", "sampled"]', '["facts"]')
    assert "batch-invariant lanes come last" in refused(project).what
    change(
        project,
        "suite.toml",
        EXAMPLE[EXAMPLE.index('[[lanes]]\nname = "replay"') :].replace(', "sampled"', ""),
        "",
    )
    assert refused(project).what == (
        "`$.golden.suite`: lane sampled asks for batch invariance: "
        "it is for GPUs, on the CPU vLLM starts with it and dies at the first token"
    )


def test_suite_full_needs_more_room_than_the_small_image_has(project: Project) -> None:
    change(project, "image.toml", 'suite = "suite.toml"', 'suite = "full"')
    assert refused(project).what == (
        "`$.golden.engine.max_model_len`: 1024 tokens are too few: "
        "shape-prefix/002 needs 2112 tokens, its prompt and its answer together"
    )


@pytest.mark.parametrize("name", ["../suite.toml", "suite.json", "Suite.toml", "", "suite.toml\n"])
def test_no_other_file_can_be_the_suite(project: Project, name: str) -> None:
    change(project, "image.toml", '"suite.toml"', repr(name))
    with pytest.raises(InvalidFileError, match=r"golden\.suite"):
        project.image("vllm-cpu")
