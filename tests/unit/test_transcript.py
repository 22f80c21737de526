import math

from msgspec.structs import replace

from repro_image.core.comparison import compare
from repro_image.core.golden import Golden, Message, Prompt, Sampling, pack_ids
from repro_image.core.transcript import (
    MAX_CHARACTERS_AFTER,
    MAX_CHARACTERS_ASKED,
    MAX_CHARACTERS_BEFORE,
    MAX_CHARACTERS_TOKEN,
    MAX_PROMPTS,
    Transcripts,
    transcripts,
)
from tests.unit.made_goldens import change, make_golden, other_bits, other_token, pack_floats


def seen(expected: Golden, found: Golden) -> Transcripts:
    return transcripts(expected, found, compare(expected, found).prompts)


def test_both_texts_are_there_up_to_the_first_differing_token_and_after_it() -> None:
    golden = make_golden()
    found = change(golden, {"greedy/1": other_token(5)})
    (text,) = seen(golden, replace(found, vocabulary={**found.vocabulary, "999": " other"})).prompts
    assert (text.id, text.asked, text.position, text.left_out) == ("greedy/1", "prompt 1", 5, 0)
    assert text.shared == " word10 word11 word12 word13 word14"
    assert (text.expected.token, text.expected.rest, text.expected.left_out) == (
        " word15",
        " word16 word17",
        0,
    )
    assert (text.found.token, text.found.rest) == (" other", " word16 word17")
    assert text.margins == (2.0,) * 8


def test_an_answer_that_ends_before_has_no_token_there() -> None:
    golden = make_golden()
    found = change(
        golden,
        {
            "greedy/1": lambda c: replace(
                c, output_ids=c.output_ids[:20], topk_ids=c.topk_ids[:40], logprobs=c.logprobs[:60]
            )
        },
    )
    (text,) = seen(golden, found).prompts
    assert (text.found.token, text.found.rest) == (None, "")
    assert text.expected.token == " word15"


def test_prompts_that_do_not_part_and_replays_have_no_text() -> None:
    golden = make_golden()
    assert seen(golden, golden) == Transcripts(prompts=(), left_out=0, margins=())
    assert seen(golden, change(golden, {"greedy/2": other_bits(3)})).prompts == ()
    assert seen(golden, change(golden, {"replay/greedy/2": other_token(3)})).prompts == ()


def test_a_chat_and_token_ids_are_told_for_readers() -> None:
    golden = make_golden()
    lanes = golden.request.lanes
    chat = Prompt(
        id="greedy/0",
        chat=(Message(role="system", content="be brief"), Message(role="user", content="why?")),
        sampling=Sampling(max_tokens=8),
    )
    request = replace(
        golden.request, lanes=(replace(lanes[0], prompts=(chat, *lanes[0].prompts[1:])), *lanes[1:])
    )
    golden = replace(golden, request=request)
    texts = seen(golden, change(golden, {"greedy/0": other_token(0), "sampled/1": other_token(0)})).prompts
    assert [text.asked for text in texts] == ["system: be brief\nuser: why?", "2 token ids"]
    assert texts[0].shared == ""


def test_margins_are_counted_up_to_the_first_flip_of_each_prompt() -> None:
    golden = make_golden()
    tie = change(
        golden,
        {"greedy/1": lambda c: replace(c, logprobs=pack_floats([-0.25, -0.25, -0.25] * 8))},
    )
    bins = seen(tie, change(tie, {"greedy/1": other_token(5), "greedy/2": other_token(0)})).margins
    counted = {(b.low, b.high): (b.tokens, b.flips) for b in bins if b.tokens}
    # Ties: tokens 0 to 5 of greedy/1. 2 nats: one token of greedy/2, all of the other three prompts.
    assert counted == {(0.0, 0.0): (6, 1), (2.0, 4.0): (1 + 3 * 8, 1)}
    assert bins[-1].high is None


def test_a_margin_that_is_not_a_number_is_counted_and_moves_nothing_else() -> None:
    golden = make_golden()
    broken = change(
        golden, {"greedy/1": lambda c: replace(c, logprobs=pack_floats([-1.0, math.inf, math.inf] * 8))}
    )
    bins = seen(broken, change(broken, {"greedy/1": other_token(5)})).margins
    assert sum(b.tokens for b in bins) == 4 * 8 + 6


def long_golden(prompts: int, tokens: int, text: str) -> Golden:
    """A golden of one lane whose tokens all read ``text``."""
    golden = make_golden()
    lane, first = golden.request.lanes[0], golden.completions[0]
    asked = tuple(
        Prompt(id=f"greedy/{n}", text="ask " * 2000, sampling=Sampling(max_tokens=tokens))
        for n in range(prompts)
    )
    answers = tuple(
        replace(
            first,
            id=prompt.id,
            output_ids=pack_ids([0] * tokens),
            topk_ids=pack_ids([0, 100] * tokens),
            logprobs=pack_floats([-0.25, -0.25, -2.25] * tokens),
        )
        for prompt in asked
    )
    return replace(
        golden,
        request=replace(golden.request, lanes=(replace(lane, prompts=asked),)),
        completions=answers,
        vocabulary={"0": text, "999": text * 2},
    )


def test_what_is_shown_is_bounded_and_what_is_left_out_is_counted() -> None:
    golden = long_golden(prompts=MAX_PROMPTS + 7, tokens=1200, text="word ")
    found = change(golden, {c.id: other_token(900) for c in golden.completions})
    told = seen(golden, found)
    assert (len(told.prompts), told.left_out) == (MAX_PROMPTS, 7)
    text = told.prompts[0]
    assert len(text.asked) < MAX_CHARACTERS_ASKED + 40
    assert text.asked.endswith("… 7000 characters more")
    assert len(text.shared) == MAX_CHARACTERS_BEFORE
    assert text.left_out == 900 - MAX_CHARACTERS_BEFORE // 5
    assert len(text.expected.rest) == MAX_CHARACTERS_AFTER
    assert text.expected.left_out == 299 - MAX_CHARACTERS_AFTER // 5
    assert len(text.margins) == MAX_CHARACTERS_BEFORE // 5 + 1 + MAX_CHARACTERS_AFTER // 5


def test_tokens_without_text_and_very_long_ones_do_not_lift_the_bound() -> None:
    golden = long_golden(prompts=1, tokens=6000, text="")
    text = seen(golden, change(golden, {"greedy/0": other_token(5000)})).prompts[0]
    assert text.left_out == 5000 - MAX_CHARACTERS_BEFORE
    golden = long_golden(prompts=1, tokens=8, text="x" * 100_000)
    text = seen(golden, change(golden, {"greedy/0": other_token(5)})).prompts[0]
    assert (
        text.expected.token
        == "x" * MAX_CHARACTERS_TOKEN + f"… {100_000 - MAX_CHARACTERS_TOKEN} characters more"
    )
    assert len(text.shared) <= MAX_CHARACTERS_BEFORE
