"""The load around golden prompts, the judgement on what a server answered, and its reports."""

import base64
import json
import math
import struct
from array import array
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from msgspec.structs import replace

from repro_image.core.comparison import Reason, nothing_to_serve
from repro_image.core.golden import Completion, Golden, Lane
from repro_image.core.project import EngineValue
from repro_image.core.serving import (
    ServedLoad,
    Serving,
    ServingVerdict,
    background,
    is_batch_invariant,
    judge_serving,
    served_engine,
    served_part,
    server_flags,
)
from repro_image.reports.serving import (
    ServingDocument,
    serving_json,
    serving_junit,
    serving_markdown,
    serving_schema,
    serving_text,
)
from repro_image.runner import serve_client
from tests.unit.made_goldens import change, make_golden, other_bits, other_token, with_batch

# (gap in ms, prompt length, first ids, output length, seed) of the first requests of stream 0 under root 42.
PINNED = [
    (514, 26, (34811, 2095, 1576), 58, 5210185077517287923),
    (715, 110, (1015, 16762, 26891), 33, 9160350470069230517),
    (347, 43, (18066, 34540, 21695), 60, 4878442270080624196),
]


@pytest.fixture
def golden() -> Golden:
    return served_part(make_golden())


def load(golden: Golden, streams: int, **changes: Callable[[Completion], Completion]) -> ServedLoad:
    changed = change(golden, {name.replace("_", "/"): made for name, made in changes.items()})
    return ServedLoad(
        streams=streams, completions=changed.completions, requests=3, in_flight=1.5, seconds=2.0
    )


def judge(golden: Golden, *loads: ServedLoad, strict: bool = False) -> Serving:
    return judge_serving(golden, loads, batch_invariant=False, strict=strict)


def test_the_first_requests_of_a_stream_are_these_integers() -> None:
    found = [
        (a.gap_ms, len(a.prompt_ids), a.prompt_ids[:3], a.max_tokens, a.seed)
        for a in background(42, 0, longest=1024)[:3]
    ]
    assert found == PINNED


def test_another_root_seed_is_another_load() -> None:
    assert background(42, 0, longest=1024) != background(43, 0, longest=1024)


def test_streams_are_independent_and_of_equal_rates() -> None:
    streams = [background(42, stream, longest=1024) for stream in range(8)]
    assert len({stream[0].gap_ms for stream in streams}) == 8
    gaps = [arrival.gap_ms for stream in streams for arrival in stream]
    mean = sum(gaps) / len(gaps)
    # 512 exponential gaps of 500 ms: the mean's standard error is 500 / sqrt(512).
    assert abs(mean - 500) < 3 * 500 / math.sqrt(512)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert 0.85 < deviation / mean < 1.15  # of an exponential distribution it is 1


def test_prompt_and_output_fit_into_a_short_model() -> None:
    arrivals = background(42, 3, longest=40)
    assert max(len(a.prompt_ids) + a.max_tokens for a in arrivals) == 40


def test_only_lanes_that_are_asked_one_by_one_are_served() -> None:
    whole = make_golden()
    one = replace(whole.request.lanes[0].prompts[0], id="together/0")
    lanes = (*whole.request.lanes, Lane(name="together", prompts=(one,), together=True))
    part = served_part(replace(whole, request=replace(whole.request, lanes=lanes)))
    assert [lane.name for lane in part.request.lanes] == ["greedy", "sampled"]
    assert [c.id for c in part.completions] == [p.id for lane in part.request.lanes for p in lane.prompts]


def test_a_batch_invariant_lane_is_asked_of_such_a_server_only() -> None:
    batch = with_batch(make_golden(), batch_invariant=True)
    *others, lane = batch.request.lanes
    whole = replace(batch, request=replace(batch.request, lanes=(*others, replace(lane, together=False))))
    for batch_invariant in (False, True):
        names = {lane.name for lane in served_part(whole, batch_invariant=batch_invariant).request.lanes}
        assert ("batch" in names) is batch_invariant


def test_a_suite_that_is_only_asked_together_leaves_nothing_to_serve() -> None:
    batch = with_batch(make_golden())
    part = served_part(replace(batch, request=replace(batch.request, lanes=batch.request.lanes[-1:])))
    assert part.completions == ()
    verdict = nothing_to_serve()
    assert (verdict.exit_code, verdict.reason) == (11, Reason.SUITE)


def test_a_prompt_without_text_has_nothing_to_compare_at_the_first_level() -> None:
    whole = make_golden()
    chat = change(whole, {"sampled/0": lambda c: replace(c, tokenized=c.prompt_ids)})
    assert {c.id: c.tokenized for c in served_part(chat).completions}["sampled/0"] == b""


def test_settings_become_flags() -> None:
    engine: dict[str, EngineValue] = {
        "enforce_eager": True,
        "async_scheduling": False,
        "block_size": 128,
        "dtype": "bfloat16",
    }
    assert server_flags(engine) == [
        "--no-async-scheduling",
        "--block-size=128",
        "--dtype=bfloat16",
        "--enforce-eager",
    ]


def test_the_server_has_room_for_every_stream_unless_the_user_says_otherwise() -> None:
    assert served_engine({"max_num_seqs": 1}, chosen={}, loads=(0, 2, 8))["max_num_seqs"] == 9
    assert served_engine({"max_num_seqs": 16}, chosen={}, loads=(0, 2))["max_num_seqs"] == 16
    assert served_engine({"max_num_seqs": 1}, chosen={"max_num_seqs": 1}, loads=(8,))["max_num_seqs"] == 1


def test_equal_answers_under_every_load_are_a_match(golden: Golden) -> None:
    found = judge(golden, load(golden, 0), load(golden, 8))
    assert (found.verdict, found.exit_code) == (ServingVerdict.MATCH, 0)
    assert all(row.agrees for row in found.rows)


def test_a_difference_is_a_measurement_without_batch_invariance(golden: Golden) -> None:
    found = judge(golden, load(golden, 0), load(golden, 2, greedy_1=other_bits(3)))
    assert (found.verdict, found.exit_code) == (ServingVerdict.MEASURED, 0)
    assert [row.agrees for row in found.rows] == [True, False]
    assert "beside 2 streams" in found.detail


@pytest.mark.parametrize(("batch_invariant", "strict"), [(True, False), (False, True), (True, True)])
def test_a_difference_is_a_mismatch_where_none_is_allowed(
    golden: Golden, batch_invariant: bool, strict: bool
) -> None:
    loads = [load(golden, 2, greedy_1=other_bits(3))]
    found = judge_serving(golden, loads, batch_invariant=batch_invariant, strict=strict)
    assert (found.verdict, found.exit_code) == (ServingVerdict.MISMATCH, 10)


def test_each_level_counts_its_own_prompts(golden: Golden) -> None:
    changed = load(golden, 8, greedy_1=other_bits(3), sampled_0=other_token(2))
    row = judge(golden, changed).rows[0]
    assert {level.level: level.differing for level in row.levels} == {"H0": 0, "H1": 1, "H2": 0, "H3": 2}
    assert row.first is not None
    assert row.first.id == "greedy/1"
    assert row.flips.events == 1


def test_batch_invariance_is_what_the_environment_says() -> None:
    assert is_batch_invariant({"VLLM_BATCH_INVARIANT": "1"})
    assert not is_batch_invariant({"VLLM_BATCH_INVARIANT": "0"})
    assert not is_batch_invariant({})


def test_the_table_has_a_line_per_load_and_a_column_per_level(golden: Golden) -> None:
    found = judge(golden, load(golden, 0), load(golden, 8, greedy_1=other_bits(3)))
    text = serving_text(found, context={"tag": "e0001-1a2b3c4d"})
    assert text == (Path(__file__).parents[1] / "data/serving.txt").read_text()


def test_what_a_model_wrote_is_escaped(golden: Golden) -> None:
    hostile = replace(golden, vocabulary=dict.fromkeys(golden.vocabulary, "\x1b[2J<b>"))
    found = judge(hostile, load(hostile, 2, greedy_1=other_token(2)))
    assert "\x1b" not in serving_text(found, context={"tag": "\x1b[2J"})
    assert "<" not in serving_json(found, context={})
    for told in (serving_junit, serving_markdown):
        assert "\x1b" not in told(found, context={"tag": "\x1b[2J"})


@pytest.mark.parametrize(("strict", "failures"), [(False, 0), (True, 1)])
def test_a_load_is_a_testcase_that_fails_only_where_a_difference_is_a_mismatch(
    golden: Golden, strict: bool, failures: int
) -> None:
    found = judge(golden, load(golden, 0), load(golden, 8, greedy_1=other_bits(3)), strict=strict)
    (suite,) = ElementTree.fromstring(serving_junit(found, context={"tag": "x"}))  # noqa: S314 - our own
    assert (suite.get("tests"), suite.get("failures")) == ("2", str(failures))
    quiet, busy = suite.findall("testcase")
    assert (quiet.get("name"), list(quiet)) == ("beside 0 streams", [])
    assert busy.get("name") == "beside 8 streams"
    (told,) = busy
    assert told.tag == ("failure" if strict else "system-out")
    assert "first difference: greedy/1 at position 3 of 8" in (told.text or "")
    assert suite.findtext("system-out") == serving_text(found, context={"tag": "x"})


def test_markdown_has_the_table_and_unfolds_the_report_where_answers_differ(golden: Golden) -> None:
    found = judge(golden, load(golden, 0), load(golden, 8, greedy_1=other_bits(3)))
    text = serving_markdown(found, context={"tag": "x"})
    assert text.startswith("### measured\n\n| streams | in flight | H0 equal | H1 equal |")
    assert "\n| 8 | 1.5 | 5 of 5 | 5 of 5 | 5 of 5 | 4 of 5 | 0 of 40 | 2.0 |\n" in text
    assert (
        f"<details open><summary>report</summary>\n\n```text\n{serving_text(found, context={'tag': 'x'})}"
        in text
    )
    assert "<details><summary>" in serving_markdown(judge(golden, load(golden, 0)), context={})


def test_the_json_document_decodes_strictly_and_its_schema_is_stored(golden: Golden) -> None:
    found = judge(golden, load(golden, 0), load(golden, 8, greedy_1=other_bits(3)))
    document = json.loads(serving_json(found, context={"tag": "x"}))
    stored = json.loads(files("repro_image").joinpath("data/serving.schema.json").read_text())
    assert stored == serving_schema()
    assert msgspec.convert(document, ServingDocument).serving == found
    assert (document["verdict"], document["exit_code"]) == ("measured", 0)


def test_the_decimals_of_json_keep_every_bit_of_a_float32() -> None:
    # The bits of numbers all over the range, subnormal ones among them.
    numbers = [struct.unpack("<f", struct.pack("<I", bits))[0] for bits in range(1, 0x7F80_0000, 9_999_991)]
    assert len(numbers) > 200
    packed = serve_client._packed("f", json.loads(json.dumps(numbers)))
    assert base64.b64decode(packed) == array("f", numbers).tobytes()


def test_the_client_sorts_alternatives_as_the_golden_runner_does() -> None:
    odds = {5: -0.5, 3: -0.25, 9: -0.5, 4: -7.0}
    assert serve_client._top(odds, 4, 3) == [3, 5, 9]  # the chosen one is none of the likeliest
    assert serve_client._top({5: -0.5, 3: -0.25}, 3, 2) == [3, 5]
