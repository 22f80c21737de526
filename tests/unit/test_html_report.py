import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.core.comparison import (
    Comparison,
    Part,
    Reason,
    Verdict,
    compare,
    compare_across,
    moved_tag,
    not_comparable_class,
)
from repro_image.core.epoch import NoiseFloor, Rounding
from repro_image.core.golden import Golden
from repro_image.core.transcript import MAX_PROMPTS, transcripts
from repro_image.reports.advice import advice
from repro_image.reports.html import html_report
from repro_image.reports.html_plots import axis_end, bar, curve
from repro_image.reports.html_text import coded, shown
from repro_image.reports.html_view import MAX_ROWS
from tests.unit.made_goldens import change, make_golden, other_bits, other_token
from tests.unit.test_reports import CONTEXT, HOSTILE
from tests.unit.test_transcript import long_golden

FLOOR = NoiseFloor(flip_rate=0.005, median_nats=0.0123, p99_nats=0.2, tokens=600)


INLINE = {"bdi", "i", "mark", "span", "strong", "code", "abbr"}


class Elements(HTMLParser):
    """What a browser builds of a page: elements with their attributes, and the text outside of <style>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag
        if tag not in INLINE:
            self.texts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        """The text, each run of white space as one space."""
        return " ".join("".join(self.texts).split())


def page_of(expected: Golden, found: Golden, **more: object) -> str:
    comparison = compare(expected, found)
    seen = transcripts(expected, found, comparison.prompts)
    return html_report(replace(comparison, **more), context=CONTEXT, seen=seen, floor=FLOOR)


def hostile_pair(text: str) -> tuple[Golden, Golden]:
    """Two goldens that part in greedy/1; ``text`` is asked, shared, expected, found, and follows."""
    golden = make_golden()
    lane = golden.request.lanes[0]
    prompts = tuple(replace(prompt, text=text) for prompt in lane.prompts)
    request = replace(golden.request, lanes=(replace(lane, prompts=prompts), *golden.request.lanes[1:]))
    golden = replace(golden, request=request, vocabulary=dict.fromkeys(golden.vocabulary, text))
    found = change(golden, {"greedy/1": other_bits(3), "greedy/2": other_token(5)})
    return golden, replace(found, vocabulary={**found.vocabulary, "999": text})


@pytest.fixture
def mismatch() -> str:
    golden = make_golden()
    found = change(golden, {"greedy/1": lambda c: other_bits(3)(other_token(5)(c))})
    return page_of(golden, replace(found, vocabulary={**found.vocabulary, "999": " other"}))


def test_the_page_loads_nothing_and_runs_nothing(mismatch: str) -> None:
    elements = Elements(mismatch).found
    assert {tag for tag, _ in elements} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
    } == set()
    attributes = {name for _, attrs in elements for name in attrs}
    assert not [name for name in attributes if name.startswith("on")]
    assert attributes & {"src", "href", "style", "srcset", "action", "background"} == set()
    assert "url(" not in mismatch
    assert "@import" not in mismatch
    policies = [
        attrs["content"] for tag, attrs in elements if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    assert str(policies[0]).startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")


def test_a_mismatch_shows_verdict_texts_margins_and_power(mismatch: str) -> None:
    text = Elements(mismatch).text
    assert text.startswith("mismatch (numeric) · repro-image verify")
    assert "tokens and bits differ" in text
    assert "H1 output tokens ≠ 1 of 10 prompts differ" in text
    assert "greedy/1 at token 5 of 8, bits from token 3 on" in text
    assert "expected word10 word11 word12 word13 word14 word15 word16 word17" in text
    assert "found word10 word11 word12 word13 word14 other word16 word17" in text
    assert "flipped tokens 1 of 38 = 2.63 %, 95 % interval 0.0666 % to 13.8 %" in text
    assert "noise floor 3 of 600 = 0.5 %" in text
    assert "2 to 4 38 1" in text
    assert "1e-4 to 1e-3 1" in text
    assert "sees a per-token change of p >= 10.9 % with 99 % (40 tokens)" in text
    assert "greedy/1 = ≠ = ≠ 8 token 5" in text


def test_the_first_differing_tokens_are_marked_and_what_follows_is_grey(mismatch: str) -> None:
    marks = re.findall(r"<mark>(.*?)</mark><span class=\"rest\">(.*?)</span>", mismatch)
    assert marks == [
        ("<bdi> word15</bdi>", "<bdi> word16 word17</bdi>"),
        ("<bdi> other</bdi>", "<bdi> word16 word17</bdi>"),
    ]


def test_a_match_has_levels_and_power_and_no_empty_columns() -> None:
    golden = make_golden()
    text = Elements(page_of(golden, golden)).text
    assert "Match" in text
    assert "H3 log-probability bits = equal" in text
    assert "sampled/1 = = = = 8" in text
    for missing in ("parts at", "Where the answers part", "The texts", "Margins.", "Differences in"):
        assert missing not in text


def test_another_class_shows_each_field_and_nothing_that_was_not_run() -> None:
    page = html_report(not_comparable_class((("threads", 2, 1),)), context=CONTEXT)
    text = Elements(page).text
    assert "Not comparable (class)" in text
    assert "threads expected 2, found 1" in text
    assert "verify TAG --record" in text
    for missing in ("Levels H0", "Prompts", "How far apart"):
        assert missing not in text


def test_weights_a_tokenizer_and_a_moved_tag_are_told() -> None:
    golden = make_golden()
    other = change(golden, {"greedy/1": lambda c: replace(c, tokenized=c.tokenized[:4])})
    assert "greedy/1 id 1: expected 2, found the end" in Elements(page_of(golden, other)).text
    other = replace(golden, weights={"embed": "xx", "layers.0": "bb"})
    assert "weights 1 of 2: embed" in Elements(page_of(golden, other)).text
    page = html_report(moved_tag("sha256:aa", "sha256:bb"), context=CONTEXT)
    assert "image expected sha256:aa, found sha256:bb" in Elements(page).text


def test_a_judgement_across_classes_shows_its_three_tests() -> None:
    golden = make_golden()
    comparison = compare_across(
        golden,
        change(golden, {"replay/greedy/1": other_bits(3)}),
        floor=FLOOR,
        differences=(("capability", "AVX512", "AVX2"),),
    )
    assert comparison.verdict is Verdict.DRIFT
    text = Elements(html_report(comparison, context=CONTEXT)).text
    assert "capability expected AVX512, found AVX2" in text
    assert "every flip is a near tie no flips" in text
    assert "no more flips than the noise floor from 0 % on (0 of 40) up to 1.45 % yes" in text
    assert (
        "median 0 nats 0.0369 nats: 3 times the noise floor, 1.75 times the rounding, or 0.01 ulp yes" in text
    )


def test_the_page_tells_what_rounding_does_beside_another_order_of_work() -> None:
    golden = make_golden()
    comparison = compare(golden, change(golden, {"greedy/1": other_token(5)}))
    rounding = Rounding(flip_rate=0.0225, median_nats=0.0132, p99_nats=0.14, tokens=400)
    text = Elements(html_report(comparison, context={}, floor=replace(FLOOR, rounding=rounding))).text
    assert "noise floor 3 of 600 = 0.5 %" in text
    assert "rounding 9 of 400 = 2.25 %" in text
    assert "another order of work flips 0.5 % of 600 tokens" in text
    assert (
        "; float32 arithmetic flips 2.25 % of 400 tokens and moves log-probabilities by 0.0132 nats" in text
    )


def test_a_run_that_stopped_early_says_that_only_a_part_was_asked(mismatch: str) -> None:
    golden = make_golden()
    found = change(golden, {"greedy/1": other_token(5)})
    page = page_of(golden, found, part=Part(prompts=2, of_prompts=10))
    assert "2 of 10 prompts" in Elements(page).text
    assert "Only a part" not in Elements(mismatch).text


def test_what_if_is_told_as_no_statement_about_the_tag() -> None:
    golden = make_golden()
    page = html_report(compare(golden, golden), context={**CONTEXT, "what if": "dtype=float32"})
    text = Elements(page).text
    assert "What if: dtype=float32 — changed on purpose" in text
    assert "The change makes no difference that the golden sees." in text
    assert "still answers the same" not in text


@pytest.mark.parametrize(
    "text",
    [
        "</script><script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "</style></bdi></main><h1>match</h1>",
        "\x1b[31mred\x1b[0m\x1b]0;title\x07",
        "\u202egnp.exe\u2066\u200f",
        "\x00\ud800\udfff\ufffe\ufeff",
        "{{ 7 * 7 }}{% raw %}",
        "x" * 50_000,
        HOSTILE,
    ],
)
def test_whatever_a_model_writes_stays_text(text: str) -> None:
    page = page_of(*hostile_pair(text))
    page.encode("utf-8")
    plain = Elements(page_of(*hostile_pair("word"))).found
    kinds = [tag for tag, _ in Elements(page).found if tag not in ("i", "bdi")]
    assert kinds == [tag for tag, _ in plain if tag not in ("i", "bdi")]
    assert all(char.isprintable() or char == "\n" for char in page)
    assert "49" not in shown(text)


@given(st.text(st.characters()))
def test_shown_text_is_readable_back_and_holds_no_markup_of_its_own(text: str) -> None:
    told = shown(text)
    told.encode("utf-8")
    assert re.sub(r"</?(bdi|i)>", "", told).find("<") == -1
    elements = Elements(str(told))
    assert {tag for tag, _ in elements.found} <= {"bdi", "i"}
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    assert "".join(elements.texts).replace("\n", "") == escaped


def test_an_escape_is_told_apart_from_a_model_that_wrote_one() -> None:
    assert shown("\x1b") == r"<bdi><i>\x1b</i></bdi>"
    assert shown(r"\x1b") == r"<bdi>\x1b</bdi>"
    assert shown("a\nb") == "<bdi>a<i>\\n\n</i>b</bdi>"


def test_commands_in_our_own_sentences_are_code() -> None:
    assert coded("Run `fetch <x>`: it proves.") == "Run <code>fetch &lt;x&gt;</code>: it proves."


def test_every_verdict_and_reason_has_advice() -> None:
    made = [Comparison(verdict=Verdict.MISMATCH, reason=reason, detail="") for reason in Reason]
    made += [Comparison(verdict=verdict, detail="") for verdict in (Verdict.MATCH, Verdict.DRIFT)]
    told = [advice(comparison, is_what_if=False) for comparison in made]
    assert all(told)
    assert len(set(told)) == len(told)
    assert all(sentence.count("`") % 2 == 0 for sentences in told for sentence in sentences)


def test_a_page_stays_under_five_megabytes_whatever_was_asked_and_written() -> None:
    golden = long_golden(prompts=MAX_PROMPTS + 6, tokens=1000, text="\U000e0001<" * 500)
    page = page_of(golden, change(golden, {c.id: other_token(900) for c in golden.completions}))
    assert 500_000 < len(page.encode()) < 5_000_000
    assert "The texts of 6 more prompts are left out" in page


def test_prompts_that_differ_are_kept_where_not_all_fit() -> None:
    golden = long_golden(prompts=MAX_ROWS + 100, tokens=4, text="\U000e0001<" * 500)
    found = change(golden, {f"greedy/{n}": other_token(2) for n in (MAX_ROWS + 50, MAX_ROWS + 60)})
    page = page_of(golden, found)
    assert len(page.encode()) < 1_000_000
    text = Elements(page).text
    assert "100 more prompts are left out" in text
    assert f"greedy/{MAX_ROWS + 60} = ≠" in text


def test_plots_are_drawn_from_numbers_alone() -> None:
    assert 'width="25%"' in bar(0.25, "tokens")
    assert 'd="M0 100H500L500 0H1000"' in curve([0.0, 3.0], at=1)
    assert 'd="M0 0H333.3M666.7 50H1000"' in curve([2.0, float("nan"), 1.0], at=0)
    assert 'path d=""' in curve([], at=0)
    assert [axis_end(values) for values in ([0.0281, 0.01], [0.5], [0.051], [])] == [0.05, 0.5, 0.1, 1.0]


def luminance(colour: str) -> float:
    """WCAG 2: relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


TEXT_ON = [
    *(("ink", ground) for ground in ("page", "sheet", "faint")),
    *(("quiet", ground) for ground in ("page", "sheet", "faint")),
    *((tone, "sheet") for tone in ("match", "mismatch")),
    *((tone, "faint") for tone in ("match", "mismatch")),
    *((tone, f"{tone}-tint") for tone in ("match", "mismatch", "not-comparable", "drift")),
    *(("ink", f"{tone}-tint") for tone in ("match", "mismatch", "not-comparable", "drift")),
]


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_and_plots_have_contrast_in_light_and_dark(scheme: int) -> None:
    style = (files("repro_image") / "data/report.css").read_text(encoding="utf-8")
    palette = dict(
        re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme])
    )
    for text, ground in TEXT_ON:
        assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    for shape in ("tokens", "differs"):
        assert contrast(palette[shape], palette["sheet"]) >= 2.5, shape
