"""The benchmark of `verify` compares like with like."""

from msgspec.structs import replace

from tests.bench.verify_cost import calls_of
from tests.unit.made_goldens import TOKENS, TOP_K, make_golden


def test_the_bare_run_makes_the_calls_of_a_golden_run_replay_included() -> None:
    golden = make_golden()
    calls = list(calls_of(golden))
    assert [len(call["prompts"]) for call in calls] == [1] * 10
    settings = [call["sampling"][0] for call in calls]
    assert [entry["max_tokens"] for entry in settings] == [TOKENS] * 5 + [1] * 5
    assert [entry.get("seed") for entry in settings] == [None] * 3 + [0, 1] + [None] * 5
    assert {entry["prompt_logprobs"] for entry in settings[5:]} == {TOP_K}
    for asked, replayed in zip(calls[:5], calls[5:], strict=True):
        assert replayed["prompts"][0][:-TOKENS] == asked["prompts"][0]


def test_what_a_golden_run_asks_together_the_bare_run_asks_together() -> None:
    golden = make_golden()
    lanes = tuple(replace(lane, together=True) for lane in golden.request.lanes)
    together = replace(golden, request=replace(golden.request, lanes=lanes))
    assert [len(call["prompts"]) for call in calls_of(together)] == [3, 2, 5]
