"""Recording: asked twice, the second time with what the first answered; a disagreement is never recorded."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from repro_image.adapters.container import GoldenRun
from repro_image.adapters.engine import Engine
from repro_image.adapters.store import Store
from repro_image.core.controls import control_part
from repro_image.core.golden import Golden, RunnerOutput, unpack_ids
from repro_image.errors import (
    ContainerTimeoutError,
    GoldenRunError,
    ToothlessGoldenError,
    UnstableGoldenError,
)
from repro_image.steps import record
from repro_image.steps.record import Asking, ask_for_record, ask_twice
from tests.unit.made_goldens import INSIDE, change, make_golden, other_bits, other_token
from tests.unit.made_locks import make_host

REPLAYED = tuple(c.id for c in make_golden().completions if c.lane == "replay")


class Quiet:
    def line(self, text: str) -> None: ...

    def status(self, text: str) -> None: ...


def asking(golden: Golden) -> Asking:
    return Asking(
        image="sha256:" + "1" * 64,
        config="sha256:" + "2" * 64,
        model=Path("/model"),
        model_digest="sha256:" + "3" * 64,
        engine={"dtype": "bfloat16"},
        environment={},
        request=golden.request,
        threads=2,
        cpuset="0,1",
        memory_gib=1,
        timeout_s=60,
        host=make_host(),
    )


def output(golden: Golden) -> RunnerOutput:
    return RunnerOutput(
        nonce="0" * 64,
        completions=golden.completions,
        vocabulary=golden.vocabulary,
        weights=golden.weights,
        canaries=golden.canaries,
        inside=INSIDE,
        seconds={"load": 1.5, "greedy": 2.5},
    )


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[GoldenRun]]:
    """Let the golden runs answer what the test says, one after the other; returns what was asked."""

    def install(*goldens: Golden) -> list[GoldenRun]:
        asked: list[GoldenRun] = []

        def run_golden(run: GoldenRun, **_: object) -> RunnerOutput:
            asked.append(run)
            return output(goldens[len(asked) - 1])

        monkeypatch.setattr(record, "run_golden", run_golden)
        return asked

    return install


def test_two_equal_answers_are_the_golden_and_the_second_run_was_fed_the_first(
    answers: Callable[..., list[GoldenRun]], tmp_path: Path
) -> None:
    golden = make_golden()
    asked = answers(golden, golden)
    answer = ask_twice(asking(golden), engine=Engine(), store=Store(tmp_path), reporter=Quiet())
    assert answer.golden == golden
    assert answer.total_s == 4.0
    first, second = asked
    assert all(prompt.token_ids is None for prompt in first.request.lanes[0].prompts)
    assert [prompt.token_ids for prompt in second.request.lanes[0].prompts] == [
        unpack_ids(completion.prompt_ids) for completion in golden.completions[:3]
    ]
    assert second.continuations["greedy/0"] == unpack_ids(golden.completions[0].output_ids)


def test_one_different_bit_in_the_second_container_refuses_the_record(
    answers: Callable[..., list[GoldenRun]], tmp_path: Path
) -> None:
    golden = make_golden()
    answers(golden, change(golden, {"greedy/1": other_bits(3)}))
    with pytest.raises(UnstableGoldenError) as caught:
        ask_twice(asking(golden), engine=Engine(), store=Store(tmp_path), reporter=Quiet())
    assert caught.value.exit_code == 10
    assert "nothing was recorded" in str(caught.value)
    assert "in 1 of 10 answers, first in greedy/1 at token 3 of 8" in str(caught.value)
    assert caught.value.otherwise == ()


def test_a_refused_record_names_what_the_second_container_had_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = make_golden()
    runs = iter(
        msgspec.structs.replace(
            output(changed),
            inside=msgspec.structs.replace(INSIDE, threads=threads, environment={"OMP_NUM_THREADS": omp}),
        )
        for changed, threads, omp in ((golden, 2, "2"), (change(golden, {"greedy/1": other_bits(3)}), 1, "1"))
    )
    monkeypatch.setattr(record, "run_golden", lambda *_args, **_others: next(runs))
    with pytest.raises(UnstableGoldenError) as caught:
        ask_twice(asking(golden), engine=Engine(), store=Store(tmp_path), reporter=Quiet())
    assert caught.value.otherwise == ("environment.OMP_NUM_THREADS: 2, then 1", "threads: 2, then 1")
    assert "\n  ran otherwise: threads: 2, then 1\n" in str(caught.value)


def test_a_record_holds_two_equal_answers_the_noise_floor_and_the_control(
    answers: Callable[..., list[GoldenRun]], tmp_path: Path
) -> None:
    golden = make_golden()
    part = control_part(golden)
    asked = answers(
        golden,
        golden,
        change(golden, {"greedy/1": other_bits(0)}),
        change(golden, {name: other_bits(0, 0.5) for name in REPLAYED}),
        change(part, {"greedy/0": other_token(2)}),
    )
    recording = ask_for_record(asking(golden), engine=Engine(), store=Store(tmp_path), reporter=Quiet())
    assert recording.answer.golden == golden
    assert recording.noise_floor.p99_nats > 0
    assert recording.noise_floor.rounding is not None
    assert recording.noise_floor.rounding.p99_nats == 0.5
    assert recording.control.found_by == "H1"
    twice, _, reordered, exact, control = asked
    assert [run.scale_weight for run in asked] == [False, False, False, False, True]
    assert reordered.engine == {"dtype": "bfloat16", "max_num_seqs": 8}
    assert [lane.together for lane in reordered.request.lanes] == [True, True, True]
    assert exact.engine == {"dtype": "float32", "kv_cache_dtype": "auto", "max_num_seqs": 8}
    assert exact.continuations["greedy/0"] == unpack_ids(golden.completions[0].output_ids)
    assert control.engine == twice.engine
    assert [lane.name for lane in control.request.lanes] == ["greedy"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GoldenRunError("the golden run ended with 1", log=("line", "no such kernel")), "no such kernel"),
        (GoldenRunError("the golden run wrote no answer", log=()), "the golden run wrote no answer"),
        (
            ContainerTimeoutError(["run"], timeout_s=60),
            "the container did not end within 60 s and was stopped",
        ),
    ],
)
def test_a_record_of_an_engine_without_float32_is_one_without_rounding_and_says_so(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    golden, told = make_golden(), list[str]()
    others = iter((golden, golden, golden, change(control_part(golden), {"greedy/0": other_token(2)})))

    def run_golden(run: GoldenRun, **_: object) -> RunnerOutput:
        if run.engine["dtype"] == "float32":
            raise error
        return output(next(others))

    monkeypatch.setattr(record, "run_golden", run_golden)
    reporter = Quiet()
    monkeypatch.setattr(reporter, "line", told.append)
    recording = ask_for_record(asking(golden), engine=Engine(), store=Store(tmp_path), reporter=reporter)
    assert recording.noise_floor.rounding is None
    assert f"rounding: not measured, for nothing ran in float32: {reason}" in told


def test_a_golden_that_does_not_see_a_changed_weight_is_refused(
    answers: Callable[..., list[GoldenRun]], tmp_path: Path
) -> None:
    golden = make_golden()
    answers(golden, golden, golden, golden, control_part(golden))
    with pytest.raises(ToothlessGoldenError) as caught:
        ask_for_record(asking(golden), engine=Engine(), store=Store(tmp_path), reporter=Quiet())
    assert caught.value.exit_code == 10
