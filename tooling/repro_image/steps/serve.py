"""verify --serve: serve an epoch's model from its image and ask the golden prompts over HTTP."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from repro_image.adapters.engine import Engine
from repro_image.adapters.files import Project
from repro_image.adapters.goldens import Goldens
from repro_image.adapters.host import parse_cpu_list, whole_cores
from repro_image.adapters.serve_run import ServeRun, run_serving
from repro_image.adapters.store import Store
from repro_image.core.comparison import Comparison, not_comparable_class, nothing_to_serve
from repro_image.core.epoch import ClassGolden
from repro_image.core.fingerprint import class_differences
from repro_image.core.golden import Golden, recorded_request
from repro_image.core.ledger import StoredEpoch
from repro_image.core.reference import ImageReference
from repro_image.core.reporter import Reporter
from repro_image.core.serving import (
    ServedLoad,
    Serving,
    background,
    is_batch_invariant,
    judge_serving,
    served_engine,
    served_part,
)
from repro_image.core.whatif import WhatIf, refuse_impossible
from repro_image.steps.ready import Ready, ready_for
from repro_image.steps.record import Asking, ask_again, fed_request
from repro_image.steps.verify import (
    Adapters,
    asked_name,
    asking_of,
    choose_entry,
    find_epoch,
    resolve_image,
    threads_of,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What `verify --serve` found.

    outcome:  the table, or the verdict of a gate before it.
    against:  what the answers were compared with, for people.
    threads:  of the server's kernels.
    max_seqs: requests that the server takes into one batch.
    """

    epoch: StoredEpoch
    reference: str
    outcome: Serving | Comparison
    against: str = ""
    threads: int = 0
    max_seqs: int = 0


def serve(
    project: Project,
    reference: ImageReference,
    *,
    store: Store,
    engine: Engine,
    reporter: Reporter,
    what_if: WhatIf,
    model: Path | None,
    loads: tuple[int, ...],
    strict: bool,
) -> Served:
    """Return how far a server in the image that ``reference`` names agrees with the golden.

    what_if, model: change server and golden alike; the golden is then not the recorded one but made now,
                    as where no core would be left beside the golden's threads.
    loads:          numbers of background streams, each a run of all prompts.
    strict:         any difference is a mismatch.
    Raises: ServingError; ImpossibleSettingError, for batch invariance on the CPU too.
    """
    adapters = Adapters(project=project, store=store, engine=engine, reporter=reporter)
    stored = find_epoch(project, reference)
    goldens = Goldens(project.lock_folder(stored.epoch.image_name) / "goldens")
    read = {entry.golden: goldens.read(entry.golden) for entry in stored.goldens}
    name = str(asked_name(reference, stored))

    def ended(gate: Comparison) -> Served:
        return Served(epoch=stored, reference=name, outcome=gate)

    image = resolve_image(reference, stored, adapters)
    if isinstance(image, Comparison):
        return ended(image)
    threads = threads_of(project, stored, what_if)
    ready = ready_for(stored, image, what_if=what_if, engine=engine, threads=threads)
    if isinstance(ready, Comparison):
        return ended(ready)
    entry = choose_entry(stored.goldens, ready.wanted)
    subject = entry.fingerprint.subject
    refuse_impossible(
        what_if,
        recorded_request(read[entry.golden]),
        engine=subject.engine,
        environment=subject.environment,
        on_gpu=bool(ready.gpus),
    )
    if gate := _class_gate(entry, ready, is_asked_anew=not what_if.is_empty or model is not None):
        return ended(gate)
    batch_invariant = is_batch_invariant({**subject.environment, **what_if.environment})
    recorded = served_part(read[entry.golden], batch_invariant=batch_invariant)
    if not recorded.completions:
        return ended(nothing_to_serve())
    with store.workspace() as folder:
        asking = asking_of(stored, entry, recorded, image, ready, what_if, model, folder, adapters)
        cores = _server_cores(ready)
        settings = served_engine(asking.engine, chosen=what_if.engine, loads=loads)
        found = _ask_server(replace(asking, engine=settings), recorded, loads, cores, adapters)
        golden, against = recorded, "the recorded golden"
        if not what_if.is_empty or model is not None or cores.threads != ready.threads:
            golden = _made_now(asking, recorded, cores, adapters, batch_invariant=batch_invariant)
            same = "equal to" if golden.completions == recorded.completions else "other than"
            against = f"a golden made now, threads and settings as here, {same} the recorded one"
    serving = judge_serving(golden, found, batch_invariant=batch_invariant, strict=strict)
    return Served(
        epoch=stored,
        reference=name,
        outcome=serving,
        against=against,
        threads=cores.threads,
        max_seqs=int(settings["max_num_seqs"]),
    )


def _class_gate(entry: ClassGolden, ready: Ready, *, is_asked_anew: bool) -> Comparison | None:
    """Return the verdict where this machine cannot be asked; a golden made here is always of its class."""
    known = entry.fingerprint.numeric_class
    differences = () if is_asked_anew else class_differences(known, ready.wanted)
    if not ready.cpuset:
        differences = (*differences, ("whole cores", ready.threads, "fewer"))
    return not_comparable_class(differences) if differences else None


@dataclass(frozen=True, slots=True)
class _Cores:
    """Threads of the server's kernels, the cores for them, and all that server and client share."""

    threads: int
    kernels: str
    shared: str


def _server_cores(ready: Ready) -> _Cores:
    """Return how the machine's cores are used.

    On the CPU one core is left to everything but the kernels, as vLLM itself leaves one: OpenMP's threads
    wait for each other, so one that shares its core stalls all.
    """
    shared = whole_cores(ready.threads + 1) or ready.cpuset
    cores = parse_cpu_list(shared)
    threads = ready.threads if ready.gpus else max(1, min(ready.threads, len(cores) - 1))
    return _Cores(threads, ",".join(map(str, cores[-threads:])), shared)


def _made_now(
    asking: Asking, recorded: Golden, cores: _Cores, adapters: Adapters, *, batch_invariant: bool
) -> Golden:
    """Return the golden of the served part with the settings and threads of the server, but without it."""
    alike = replace(asking, threads=cores.threads, cpuset=cores.kernels)
    answer = ask_again(
        alike, recorded, engine=adapters.engine, store=adapters.store, reporter=adapters.reporter
    )
    adapters.reporter.line(f"a golden run without a server, threads: {cores.threads}, {answer.total_s:.1f} s")
    made = msgspec.structs.replace(answer.golden, request=asking.request)
    return served_part(made, batch_invariant=batch_invariant)


def _ask_server(
    asking: Asking, recorded: Golden, loads: tuple[int, ...], cores: _Cores, adapters: Adapters
) -> tuple[ServedLoad, ...]:
    reporter = adapters.reporter
    longest = int(asking.engine.get("max_model_len", 1024))
    streams = range(max(loads))
    run = ServeRun(
        image=asking.image,
        model=asking.model,
        engine=asking.engine,
        environment={**_threads_environment(asking, cores), **asking.environment},
        request=fed_request(asking, recorded),
        loads=loads,
        background=tuple(background(recorded.request.root_seed, n, longest=longest) for n in streams),
        cpuset=cores.shared,
        memory_gib=asking.memory_gib,
        timeout_s=asking.timeout_s,
        gpus=tuple(gpu.uuid for gpu in asking.gpus),
    )
    with adapters.store.workspace() as folder:
        found = run_serving(run, engine=adapters.engine, folder=folder, report=_progress(reporter))
    for load in found:
        told = f"{len(load.completions)} prompts beside {load.streams} streams"
        reporter.line(f"{told}, {load.in_flight:.1f} other requests in flight: {load.seconds:.1f} s")
    return found


def _threads_environment(asking: Asking, cores: _Cores) -> Mapping[str, str]:
    """Return variables that give the server's kernels these threads.

    An image that leaves multiprocessing on would count the threads itself; told where to bind them it takes
    these.
    """
    threads = {"OMP_NUM_THREADS": str(cores.threads)}
    return threads if asking.gpus else {**threads, "VLLM_CPU_OMP_THREADS_BIND": cores.kernels}


def _progress(reporter: Reporter) -> Callable[[str, int, int], None]:
    def report(phase: str, done: int, total: int) -> None:
        reporter.status(f"serving: {phase} {done}/{total}")

    return report
