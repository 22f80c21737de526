"""Text, JSON, JUnit, Markdown and HTML are five ways to say one thing."""

import json
import re
from collections.abc import Callable
from xml.etree import ElementTree

import msgspec
import pytest
from msgspec.structs import replace

from repro_image.core.comparison import (
    Comparison,
    FieldDifference,
    Part,
    Reason,
    Verdict,
    compare,
    compare_across,
    compare_repeat,
    moved_tag,
    no_noise_floor,
    not_comparable_class,
    not_comparable_constraint,
    too_weak,
)
from repro_image.core.epoch import NoiseFloor
from repro_image.core.golden import Golden, unpack_floats
from repro_image.reports.html import html_report
from repro_image.reports.json_report import VerifyDocument, json_report
from repro_image.reports.junit import junit_report
from repro_image.reports.markdown import markdown_report
from repro_image.reports.phrases import (
    LEVEL_NAMES,
    across_tests,
    level_text,
    parting_text,
    power_text,
    rate_text,
    side_texts,
    token_text,
)
from repro_image.reports.text import text_report
from tests.unit.made_goldens import change, make_golden, other_bits, other_token, pack_floats
from tests.unit.test_html_report import Elements

CONTEXT = {"tag": "repro-image/vllm-cpu:e0001-1a2b3c4d", "what if": "dtype=float32"}
CLASS = (("threads", 2, 1), ("flags", ("avx", "avx512f"), ("avx", "fma")))
FLOOR = NoiseFloor(flip_rate=0.005, median_nats=0.0123, p99_nats=0.2, tokens=600)


def both(golden: Golden) -> Golden:
    return change(golden, {"greedy/1": lambda c: other_bits(3)(other_token(5)(c))})


def other_model(golden: Golden) -> Golden:
    return change(golden, {c.id: lambda c: other_bits(0)(other_token(1)(c)) for c in golden.completions})


def not_a_number(golden: Golden) -> Golden:
    return change(
        golden,
        {
            "greedy/1": lambda c: replace(
                c, logprobs=pack_floats([*unpack_floats(c.logprobs)[:-1], float("nan")])
            )
        },
    )


def comparisons() -> dict[str, Comparison]:
    """One of each verdict and reason, as the rules make it."""
    golden = make_golden()
    constraint = FieldDifference(field="cuda.driver", expected=">= 580", found="570.1")
    weak = too_weak(40, change=0.001)
    assert weak is not None
    return {
        "match": compare(golden, golden),
        "numeric": compare(golden, both(golden)),
        "bits": compare(golden, change(golden, {"greedy/2": other_bits(4)})),
        "replay": compare(golden, change(golden, {"replay/greedy/2": other_bits(4)})),
        "sampling": compare(golden, change(golden, {"sampled/1": other_token(2)})),
        "model": compare(golden, other_model(golden)),
        "weights": compare(golden, replace(both(golden), weights={"embed": "xx", "layers.0": "bb"})),
        "unstable": compare_repeat(golden, both(golden)),
        "NaN": compare(golden, not_a_number(golden)),
        "part": replace(compare(golden, both(golden)), part=Part(prompts=2, of_prompts=10)),
        "class": not_comparable_class(CLASS),
        "no floor": no_noise_floor(CLASS),
        "constraint": not_comparable_constraint((constraint,)),
        "suite": compare(golden, replace(golden, completions=golden.completions[:-1])),
        "tokenizer": compare(
            golden, change(golden, {"greedy/1": lambda c: replace(c, tokenized=c.tokenized[:4])})
        ),
        "moved tag": moved_tag("sha256:aa", "sha256:bb"),
        "power": weak,
        "drift": compare_across(
            golden, change(golden, {"replay/greedy/1": other_bits(3)}), floor=FLOOR, differences=CLASS
        ),
        "another model elsewhere": compare_across(
            golden, other_model(golden), floor=FLOOR, differences=CLASS
        ),
    }


def text_of(comparison: Comparison) -> str:
    return text_report(comparison, context=CONTEXT)


def json_of(comparison: Comparison) -> str:
    """What the document says, once it has been decoded strictly: the words that other forms have for it."""
    document = msgspec.convert(json.loads(json_report(comparison, context=CONTEXT)), VerifyDocument)
    assert (document.verdict, document.reason, document.detail) == (
        comparison.verdict,
        comparison.reason,
        comparison.detail,
    )
    assert document.exit_code == comparison.exit_code
    return text_report(document.comparison, context=document.context)


def junit_of(comparison: Comparison) -> str:
    root = ElementTree.fromstring(junit_report(comparison, context=CONTEXT))  # noqa: S314 - our own document
    values = [value for element in root.iter() for value in element.attrib.values()]
    return " ".join([*values, *root.itertext()])


def markdown_of(comparison: Comparison) -> str:
    return re.sub(r"[|*#`]", " ", markdown_report(comparison, context=CONTEXT))


def html_of(comparison: Comparison) -> str:
    text = Elements(html_report(comparison, context=CONTEXT)).text
    return re.sub(r"[=≠] (?=equal|[0-9]+ of [0-9]+ prompts)", "", text)


FORMS: tuple[Callable[[Comparison], str], ...] = (text_of, json_of, junit_of, markdown_of, html_of)


def facts(comparison: Comparison) -> list[str]:
    """What every form has to say of ``comparison``, in the words that all of them share."""
    reason = f" ({comparison.reason})" if comparison.reason else ""
    told = [f"{comparison.verdict}{reason}", comparison.detail, *CONTEXT.values()]
    told += [f"{name} {sides}" for name, sides in side_texts(comparison)]
    told += [f"{row.level} {LEVEL_NAMES[row.level]} {level_text(row)}" for row in comparison.levels]
    if comparison.first:
        told.append(f"{comparison.first.id} at {parting_text(comparison.first)}")
        parts = comparison.first.divergence
        told += [token_text(parts.expected), token_text(parts.found)] if parts else []
    if comparison.verdict is not Verdict.MATCH:
        told += [rate_text(rate) for rate in (comparison.flips, comparison.replay_flips) if rate]
    told += [part for test in across_tests(comparison.across) for part in (test.name, test.found, test.limit)]
    if comparison.part:
        told.append(f"{comparison.part.prompts} of {comparison.part.of_prompts}")
    if comparison.visible:
        told.append(power_text(comparison.visible))
    return told


def one_line(text: str) -> str:
    return " ".join(text.split()).lower()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__.removesuffix("_of"))
@pytest.mark.parametrize("name", comparisons())
def test_every_form_says_the_same(name: str, form: Callable[[Comparison], str]) -> None:
    comparison = comparisons()[name]
    said = one_line(form(comparison))
    assert [fact for fact in facts(comparison) if one_line(fact) not in said] == []


def test_every_verdict_and_every_reason_is_among_them() -> None:
    made = comparisons().values()
    assert {comparison.verdict for comparison in made} == set(Verdict)
    assert {comparison.reason for comparison in made if comparison.reason} == set(Reason)
