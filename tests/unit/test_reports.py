import json
from decimal import Decimal
from importlib.resources import files
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import JUnitXml
from msgspec.structs import replace

from repro_image.core.comparison import Comparison, Part, compare, moved_tag, not_comparable_class
from repro_image.core.golden import Golden, pack_ids
from repro_image.reports.escape import quoted, visible
from repro_image.reports.json_report import VerifyDocument, json_report, json_schema
from repro_image.reports.junit import junit_report
from repro_image.reports.markdown import markdown_report
from repro_image.reports.phrases import seen_percent
from repro_image.reports.text import text_report
from tests.unit.made_goldens import change, make_golden, other_bits, other_token
from tests.unit.test_across import close_calls, judged, moved

CONTEXT = {"tag": "repro-image/vllm-cpu:e0001-1a2b3c4d", "image": "sha256:" + "a" * 64}
HOSTILE = (
    '\x1b[31mred\x1b[0m\r\n\x00\x07 ]]> <b onclick="x">&amp;</b> \u202egnp.exe \ud800 \x7f\x9b31m \ufffe'
)


@pytest.fixture
def golden() -> Golden:
    return make_golden()


@pytest.fixture
def mismatch(golden: Golden) -> Comparison:
    """A token flip whose found token tries to break every report format."""
    found = change(golden, {"greedy/1": lambda c: other_bits(3)(other_token(5)(c))})
    return compare(golden, replace(found, vocabulary={**found.vocabulary, "999": HOSTILE}))


def test_a_match_is_told_in_a_few_lines(golden: Golden) -> None:
    assert text_report(compare(golden, golden), context=CONTEXT) == (
        "match: every level is equal over 10 prompts and 40 tokens\n"
        "\n"
        "  tag    repro-image/vllm-cpu:e0001-1a2b3c4d\n"
        f"  image  sha256:{'a' * 64}\n"
        "\n"
        "  H0  tokenised prompts     equal\n"
        "  H1  output tokens         equal\n"
        "  H2  likeliest tokens      equal\n"
        "  H3  log-probability bits  equal\n"
        "\n"
        "  power  sees a per-token change of p >= 10.9 % with 99 % (40 tokens);"
        " with prompts as clusters p >= 60.2 % (5)\n"
    )


def test_a_mismatch_shows_where_the_answers_part(mismatch: Comparison) -> None:
    lines = text_report(mismatch, context={}).splitlines()
    assert lines[0] == "mismatch (numeric): tokens and bits differ"
    assert "  H1  output tokens         1 of 10 prompts differ" in lines
    assert "  first divergence: greedy/1 at token 5 of 8, bits from token 3 on" in lines
    assert '    expected  " word15" (id 15), margin 2 nats = 1 ulp' in lines
    assert "  flipped tokens     1 of 38 = 2.63 %, 95 % interval 0.0666 % to 13.8 %" in lines
    assert "  off by nats        0: 76, 1e-4: 1" in lines
    assert "  off by ulps        0: 76, 1e-4: 1 (1 ulp of the logits = 2 nats)" in lines


def test_bits_alone_are_told_with_their_position(golden: Golden) -> None:
    text = text_report(compare(golden, change(golden, {"greedy/2": other_bits(4)})), context={})
    assert "  first difference: greedy/2 at position 4 of 8, tokens same" in text


def test_another_class_is_told_with_each_of_the_three_tests_and_its_figures() -> None:
    golden = close_calls()
    lines = text_report(judged(golden, moved(golden, 0.0031)), context={}).splitlines()
    assert lines[0] == "mismatch (numeric): log-probabilities move more than the noise floor explains"
    assert "  capability  expected AVX512, found AVX2" in lines
    at = lines.index("  judged by 40 replayed tokens:")
    assert [line.split("  ")[-1] for line in lines[at + 1 : at + 4]] == [
        "holds: no flips, allowed 0.5 nats",
        "holds: from 0 % on (0 of 40), allowed up to 2.54 %",
        "fails: median 0.0031 nats, allowed 0.003 nats: 3 times the noise floor, 1.75 times the rounding,"
        " or 0.01 ulp",
    ]


def test_a_part_is_told_as_one(mismatch: Comparison) -> None:
    part = replace(mismatch, part=Part(prompts=2, of_prompts=10))
    told = "compared           2 of 10 answers, up to the first difference; the rest was not asked"
    assert told in text_report(part, context={})


def test_a_model_s_text_reaches_a_terminal_only_escaped(mismatch: Comparison) -> None:
    text = text_report(mismatch, context={"note": HOSTILE})
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert r"\x1b[31mred\x1b[0m\r\n\x00\x07 ]]> <b onclick=\"x\">" in text.replace(r"\\", "\\")


def test_colour_is_there_only_when_asked(golden: Golden) -> None:
    comparison = compare(golden, golden)
    assert "\x1b[32m" in text_report(comparison, context={}, colour=True)
    assert "\x1b" not in text_report(comparison, context={})


def test_another_class_shows_each_field_and_of_lists_what_the_other_lacks() -> None:
    comparison = not_comparable_class((("threads", 2, 1), ("flags", ("avx", "avx512f"), ("avx", "fma"))))
    text = text_report(comparison, context={})
    assert text.startswith("not comparable (class): the numeric class differs: threads, flags\n")
    assert "  threads  expected 2, found 1\n  flags    missing avx512f, added fma\n" in text


def test_a_moved_tag_shows_both_digests() -> None:
    assert "  image  expected sha256:aa, found sha256:bb" in text_report(
        moved_tag("sha256:aa", "sha256:bb"), context={}
    )


def test_another_tokenizer_shows_the_prompt_and_both_ids(golden: Golden) -> None:
    found = change(golden, {"greedy/1": lambda c: replace(c, tokenized=pack_ids([1]))})
    assert "  greedy/1  id 1: expected 2, found the end" in text_report(compare(golden, found), context={})


def test_other_weights_are_named(golden: Golden) -> None:
    text = text_report(
        compare(golden, replace(golden, weights={"embed": "xx", "layers.0": "bb"})), context={}
    )
    assert "  weights  1 of 2: embed" in text


def test_the_json_document_decodes_strictly_and_keeps_everything(mismatch: Comparison) -> None:
    text = json_report(mismatch, context=CONTEXT)
    assert text.isascii()
    assert not set("<>&\x7f\x1b") & set(text)
    document = json.loads(text)
    assert (document["verdict"], document["reason"], document["exit_code"]) == ("mismatch", "numeric", 10)
    assert document["context"] == CONTEXT
    assert document["comparison"]["first"]["divergence"]["found"]["text"] == HOSTILE
    assert msgspec.convert(document, VerifyDocument).comparison == mismatch


def test_the_stored_schema_is_that_of_the_document() -> None:
    stored = json.loads(files("repro_image").joinpath("data/verify.schema.json").read_text())
    assert stored == json.loads(json.dumps(json_schema()))


def test_the_json_document_has_the_fields_and_types_of_the_schema(mismatch: Comparison) -> None:
    schema = json_schema()
    for comparison in (mismatch, moved_tag("a", "b"), not_comparable_class((("threads", 2, 1),))):
        document = json.loads(json_report(comparison, context=CONTEXT))
        _check(document, {"$ref": schema["$ref"]}, schema["$defs"])


def _check(value: object, schema: dict[str, object], definitions: dict[str, dict[str, object]]) -> None:
    """Check ``value`` against the part of JSON Schema that the document's schema uses."""
    if "$ref" in schema:
        schema = definitions[str(schema["$ref"]).rpartition("/")[2]]
    if "anyOf" in schema:
        assert isinstance(schema["anyOf"], list)
        assert any(_fits(value, option, definitions) for option in schema["anyOf"])
        return
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
    }
    kind = schema.get("type")
    if kind == "null":
        assert value is None
    elif isinstance(kind, str):
        assert isinstance(value, kinds[kind])  # type: ignore[arg-type]
    if "enum" in schema:
        assert value in schema["enum"]  # type: ignore[operator]
    if isinstance(value, dict) and isinstance(schema.get("properties"), dict):
        properties: dict[str, dict[str, object]] = schema["properties"]  # type: ignore[assignment]
        assert set(schema.get("required", [])) <= value.keys() <= properties.keys()  # type: ignore[call-overload]
        for name, item in value.items():
            _check(item, properties[name], definitions)
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for item in value:
            _check(item, schema["items"], definitions)  # type: ignore[arg-type]


def _fits(value: object, schema: dict[str, object], definitions: dict[str, dict[str, object]]) -> bool:
    try:
        _check(value, schema, definitions)
    except AssertionError:
        return False
    return True


def test_junit_has_a_case_per_prompt_and_one_for_the_verdict(mismatch: Comparison) -> None:
    root = ElementTree.fromstring(junit_report(mismatch, context=CONTEXT))  # noqa: S314 - our own document
    cases = root.findall("./testsuite/testcase")
    assert [case.get("name") for case in cases][:3] == ["verdict", "greedy/0", "greedy/1"]
    assert len(cases) == 11
    assert [case.get("name") for case in cases if case.find("failure") is not None] == ["verdict", "greedy/1"]
    assert (root.get("tests"), root.get("failures")) == ("11", "2")
    properties = {p.get("name"): p.get("value") for p in root.findall("./testsuite/properties/property")}
    assert properties == CONTEXT


def test_junit_stays_valid_xml_whatever_the_model_wrote(mismatch: Comparison) -> None:
    text = junit_report(mismatch, context={"tag": HOSTILE})
    text.encode("utf-8")
    assert "]]>" not in text
    failure = ElementTree.fromstring(text).find(".//testcase[@name='greedy/1']/failure")  # noqa: S314
    assert failure is not None
    assert r"]]> <b onclick=\"x\">" in str(failure.text)


# Jenkins' schema junit-10.xsd: element -> attributes that it needs, that it may have, and children.
_COUNTS = {"name", "tests", "failures", "errors"}
JENKINS: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {*_COUNTS, "time"}, {"testsuite"}),
    "testsuite": (
        _COUNTS,
        {"group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "testcase": (
        {"name"},
        {"time", "classname", "group"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "failure": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}


def test_junit_has_the_form_that_jenkins_accepts(mismatch: Comparison, golden: Golden) -> None:
    for comparison in (mismatch, compare(golden, golden), not_comparable_class((("threads", 2, 1),))):
        root = ElementTree.fromstring(junit_report(comparison, context=CONTEXT))  # noqa: S314 - our own
        assert root.tag == "testsuites"
        for element in root.iter():
            needed, possible, children = JENKINS[element.tag]
            assert needed <= set(element.keys()) <= needed | possible, element.tag
            assert {child.tag for child in element} <= children, element.tag


def test_another_program_reads_the_same_from_junit(mismatch: Comparison) -> None:
    suites = JUnitXml.fromstring(junit_report(mismatch, context=CONTEXT).encode())
    suite = next(iter(suites))
    assert (suites.tests, suites.failures, suites.errors) == (11, 2, 0)
    properties = suite.properties()  # type: ignore[no-untyped-call]
    assert {item.name: item.value for item in properties} == CONTEXT
    failed = {case.name: case.result[0].type for case in suite if case.result}
    assert failed == {"verdict": "mismatch: numeric", "greedy/1": "mismatch"}


def test_junit_of_a_match_has_no_failure(golden: Golden) -> None:
    root = ElementTree.fromstring(junit_report(compare(golden, golden), context={}))  # noqa: S314
    assert root.get("failures") == "0"
    assert root.find(".//failure") is None


def test_junit_of_another_class_names_the_fields() -> None:
    text = junit_report(not_comparable_class((("threads", 2, 1),)), context={})
    failure = ElementTree.fromstring(text).find(".//failure")  # noqa: S314
    assert failure is not None
    assert (failure.get("type"), failure.text) == ("not comparable: class", "threads: expected 2, found 1")


@given(st.text(st.characters()))
def test_escaped_text_is_printable_and_valid_in_every_encoding_step(text: str) -> None:
    assert visible(text).isprintable()
    assert quoted(text).encode("utf-8")


@given(st.text(st.characters(codec="utf-8")))
def test_quoted_text_can_be_read_back(text: str) -> None:
    inner = quoted(text)[1:-1].encode("latin-1", "backslashreplace")
    assert inner.decode("unicode_escape") == text


def test_markdown_shows_verdict_and_levels_and_keeps_the_text_report_in_one_block(golden: Golden) -> None:
    comparison = compare(golden, golden)
    told = markdown_report(comparison, context=CONTEXT)
    assert told.startswith("### match\n\n| level | what | found |\n")
    assert "| H3 | log-probability bits | equal |" in told
    assert f"```text\n{text_report(comparison, context=CONTEXT)}```\n" in told
    assert "<details><summary>" in told


def test_markdown_of_a_mismatch_is_open_and_says_how_many_prompts_differ(mismatch: Comparison) -> None:
    told = markdown_report(mismatch, context={})
    assert told.startswith("### mismatch (numeric)\n")
    assert "| H1 | output tokens | **1 of 10 prompts differ** |" in told
    assert "<details open><summary>" in told


@given(st.text(alphabet="`a\n<", max_size=30))
def test_nothing_that_a_model_writes_closes_the_block_of_markdown(text: str) -> None:
    golden = make_golden()
    found = change(golden, {"greedy/1": other_token(5)})
    comparison = compare(golden, replace(found, vocabulary={**found.vocabulary, "999": text}))
    told = markdown_report(comparison, context={"tag": text})
    fence = next(line.removesuffix("text") for line in told.splitlines() if line.startswith("```"))
    inside = told.split(f"{fence}text\n")[1].rsplit(f"\n{fence}\n", 1)[0]
    assert fence not in inside


@given(st.floats(min_value=1e-9, max_value=1, exclude_max=True))
def test_a_change_that_is_said_to_be_seen_is_never_smaller_than_the_one_that_is(change: float) -> None:
    told = Decimal(seen_percent(change).removesuffix(" %")) / 100
    assert Decimal(change) <= told <= Decimal(change) * Decimal("1.011")
