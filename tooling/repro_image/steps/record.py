"""Run the golden request in an image: once to compare, twice in two containers to record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from repro_image.adapters.container import GoldenRun, run_golden
from repro_image.adapters.engine import Engine
from repro_image.adapters.goldens import Goldens
from repro_image.adapters.store import Store
from repro_image.core.canonical import canonical_digest
from repro_image.core.comparison import Verdict, compare_repeat
from repro_image.core.controls import (
    control_part,
    exact_engine,
    negative_control,
    noise_floor,
    reordered_engine,
    reordered_request,
    replay_only,
    replayed_part,
    rounding,
)
from repro_image.core.epoch import ClassGolden, NegativeControl, NoiseFloor, Power, Repeat, Rounding
from repro_image.core.fingerprint import (
    Fingerprint,
    Host,
    NumericClass,
    Subject,
    cpu_class,
    cuda_class,
    without_passing,
)
from repro_image.core.golden import (
    ExpectedAnswers,
    Golden,
    GoldenRequest,
    Inside,
    RunnerOutput,
    golden_of,
    levels,
    recorded_continuations,
    recorded_request,
)
from repro_image.core.gpu import Gpu
from repro_image.core.intervals import smallest_visible_change
from repro_image.core.lockfile import ModelLock
from repro_image.core.model_files import refuse_unsafe
from repro_image.core.parts import first_part
from repro_image.core.project import EngineValue, tensor_parallel_of
from repro_image.core.reporter import Reporter
from repro_image.errors import (
    ContainerTimeoutError,
    GoldenRunError,
    ToothlessGoldenError,
    UnstableGoldenError,
)

_CONFIDENCE = 0.99


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """One image and the way it is asked.

    image:    id that the engine runs it by.
    config:   config digest, what the image is.
    model:    folder; model_digest: of its files.
    cpuset:   whole cores of this machine, as many as threads.
    gpus:     those that the run gets, as they are seen inside the container; empty on the CPU.
    scale_weight: multiply one weight by 1 + 2**-7: the negative control.
    expected: with it the run ends after the first call that differs, and the answer is a part.
    """

    image: str
    config: str
    model: Path
    model_digest: str
    engine: Mapping[str, EngineValue]
    environment: Mapping[str, str]
    request: GoldenRequest
    threads: int
    cpuset: str
    memory_gib: int
    timeout_s: int
    host: Host
    gpus: tuple[Gpu, ...] = ()
    scale_weight: bool = False
    expected: ExpectedAnswers | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What an image answered, and where."""

    golden: Golden
    inside: Inside
    seconds: Mapping[str, float]

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


def ask(
    asking: Asking, *, engine: Engine, store: Store, reporter: Reporter, fed: Golden | None = None
) -> Answer:
    """Run the golden request once in a new container.

    fed: a recorded golden, whose prompt ids and continuations are fed; None on the very first run.
    """
    run = GoldenRun(
        image=asking.image,
        model=asking.model,
        engine=asking.engine,
        request=asking.request,
        continuations=recorded_continuations(fed) if fed else {},
        threads=asking.threads,
        cpuset=asking.cpuset,
        memory_gib=asking.memory_gib,
        timeout_s=asking.timeout_s,
        environment=asking.environment,
        gpus=tuple(gpu.uuid for gpu in asking.gpus),
        scale_weight=asking.scale_weight,
        expected=asking.expected,
    )
    with store.workspace() as folder:
        output: RunnerOutput = run_golden(run, engine=engine, folder=folder, report=_progress(reporter))
    request = fed.request if fed else asking.request
    request = first_part(request, len(output.completions)) or request
    return Answer(golden=golden_of(request, output), inside=output.inside, seconds=output.seconds)


def ask_twice(asking: Asking, *, engine: Engine, store: Store, reporter: Reporter) -> Answer:
    """Run the golden request in two new containers and return the first answer, when both agree bit by bit.

    The second run is fed what the first recorded, exactly as verify will do it.
    Raises: UnstableGoldenError; nothing may be recorded then.
    """
    first = ask(asking, engine=engine, store=store, reporter=reporter)
    reporter.line(f"golden run 1 of 2: {first.golden.token_count} tokens in {first.total_s:.1f} s")
    again = ask(_fed(asking, first.golden), engine=engine, store=store, reporter=reporter, fed=first.golden)
    comparison = compare_repeat(first.golden, again.golden)
    if comparison.verdict is not Verdict.MATCH:
        raise UnstableGoldenError(comparison.detail, otherwise=first.inside.others_in(again.inside))
    reporter.line(f"golden run 2 of 2: the same bits, in {again.total_s:.1f} s")
    return first


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """What is recorded of one class: the answer that two containers agreed on, and what it is worth."""

    answer: Answer
    noise_floor: NoiseFloor
    control: NegativeControl


def ask_for_record(asking: Asking, *, engine: Engine, store: Store, reporter: Reporter) -> Recording:
    """Ask twice, then once reordered and, in part, once in float32 and once with a changed weight.

    Raises: UnstableGoldenError; ToothlessGoldenError where the answers do not show the changed weight.
    """
    answer = ask_twice(asking, engine=engine, store=store, reporter=reporter)
    golden = answer.golden
    fed = _fed(asking, golden)
    batched = replace(fed, request=reordered_request(fed.request), engine=reordered_engine(asking.engine))
    reordered = ask(batched, engine=engine, store=store, reporter=reporter, fed=golden)
    floor = noise_floor(golden, reordered.golden)
    reporter.line(f"noise floor: {_told(floor)}, in {reordered.total_s:.1f} s")
    floor = msgspec.structs.replace(
        floor, rounding=_rounding(asking, golden, engine=engine, store=store, reporter=reporter)
    )
    part = control_part(golden)
    changed = replace(_fed(asking, part), scale_weight=True)
    other = ask(changed, engine=engine, store=store, reporter=reporter, fed=part)
    control = negative_control(part, other.golden)
    if control is None:
        raise ToothlessGoldenError(prompts=len(part.completions))
    reporter.line(f"negative control: found by {control.found_by}, in {other.total_s:.1f} s")
    return Recording(answer=answer, noise_floor=floor, control=control)


def _rounding(
    asking: Asking, golden: Golden, *, engine: Engine, store: Store, reporter: Reporter
) -> Rounding | None:
    """Ask the replays again in float32; None, and the record is one without, where the engine cannot."""
    part, settings = replayed_part(golden), exact_engine(asking.engine)
    if part is None or settings is None:
        return None
    fed = _fed(asking, part)
    exact = replace(fed, request=replay_only(fed.request), engine=settings)
    try:
        answer = ask(exact, engine=engine, store=store, reporter=reporter, fed=part)
    except (GoldenRunError, ContainerTimeoutError) as error:
        reason = error.log[-1] if isinstance(error, GoldenRunError) and error.log else error.what
        reporter.line(f"rounding: not measured, for nothing ran in float32: {reason}")
        return None
    found = rounding(part, answer.golden)
    if found is not None:
        reporter.line(f"rounding: {_told(found)} from float32, in {answer.total_s:.1f} s")
    return found


def _told(floor: NoiseFloor | Rounding) -> str:
    return f"{floor.flip_rate:.2%} of tokens flip, median {floor.median_nats:.1e} nats"


def ask_again(asking: Asking, golden: Golden, *, engine: Engine, store: Store, reporter: Reporter) -> Answer:
    """Run a recorded golden's request once more, fed with what it recorded."""
    return ask(_fed(asking, golden), engine=engine, store=store, reporter=reporter, fed=golden)


def _fed(asking: Asking, golden: Golden) -> Asking:
    return replace(asking, request=fed_request(asking, golden))


def fed_request(asking: Asking, golden: Golden) -> GoldenRequest:
    """Return what is asked when ``golden`` is asked for again: the ids that it recorded."""
    return _keep_sampling(recorded_request(golden), asking.request)


def _keep_sampling(recorded: GoldenRequest, asked: GoldenRequest) -> GoldenRequest:
    """Return ``recorded`` with the sampling settings of ``asked``: a what-if may have changed them."""
    sampling = {prompt.id: prompt.sampling for lane in asked.lanes for prompt in lane.prompts}
    lanes = [
        msgspec.structs.replace(
            lane,
            prompts=tuple(msgspec.structs.replace(p, sampling=sampling[p.id]) for p in lane.prompts),
        )
        for lane in recorded.lanes
    ]
    return msgspec.structs.replace(recorded, lanes=tuple(lanes))


def class_golden(asking: Asking, recording: Recording, *, goldens: Goldens) -> ClassGolden:
    """Store the answer and return its entry for the ledger."""
    answer = recording.answer
    golden = answer.golden
    numeric_class = class_of(asking, answer.inside)
    fingerprint = Fingerprint(
        numeric_class=numeric_class,
        subject=subject_of(asking, answer),
        host=without_passing(asking.host),
        recorded={
            "python": answer.inside.python,
            "libc": answer.inside.libc,
            "cpuset": asking.cpuset,
        },
    )
    return ClassGolden(
        numeric_class=numeric_class.digest,
        golden=goldens.write(golden),
        levels=levels(golden),
        tokens=golden.token_count,
        repeat=Repeat(runs=2),
        fingerprint=fingerprint,
        noise_floor=recording.noise_floor,
        negative_control=recording.control,
        power=Power(
            tokens=golden.token_count,
            prompts=sum(len(lane.prompts) for lane in golden.request.lanes),
            confidence=_CONFIDENCE,
            sees_per_token=smallest_visible_change(golden.token_count),
        ),
    )


def class_of(asking: Asking, inside: Inside) -> NumericClass:
    """Return the numeric class of a run that was made."""
    if asking.gpus:
        return cuda_class(asking.gpus, tensor_parallel=tensor_parallel_of(asking.engine))
    seen = cpu_class(asking.host, threads=asking.threads, capability=inside.capability)
    return msgspec.structs.replace(seen, threads=inside.threads, cpus=inside.cpus)


def subject_of(asking: Asking, answer: Answer) -> Subject:
    return Subject(
        image=asking.config,
        engine=dict(asking.engine),
        resolved=answer.inside.engine,
        environment=answer.inside.environment,
        model=asking.model_digest,
        weights=canonical_digest(answer.golden.weights),
        suite=answer.golden.request.digest,
        packages=answer.inside.packages,
    )


def laid_out_model(store: Store, lock: ModelLock, workspace: Path) -> Path:
    """Check every file of the locked model against its digest and lay the folder out for mounting.

    Raises: CorruptFileError, MissingFileError; UnsafeModelError, as for a folder that the user names.
    """
    digests = {file.path: file.sha256 for file in lock.files}
    for digest in digests.values():
        store.verify(digest)
    refuse_unsafe(digests, where="the locked model", read=lambda path: store.path(digests[path]).read_bytes())
    folder = workspace / "model"
    store.lay_out(folder, digests)
    return folder


def _progress(reporter: Reporter) -> Callable[[str, int, int], None]:
    def report(phase: str, done: int, total: int) -> None:
        reporter.status(f"golden run: {phase} {done}/{total}" if total else f"golden run: {phase}")

    return report
