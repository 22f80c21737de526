"""Find the epoch of a tag, run its golden again, compare: the promise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from repro_image import __version__
from repro_image.adapters.engine import Engine
from repro_image.adapters.files import Project
from repro_image.adapters.goldens import Goldens
from repro_image.adapters.image_archive import config_digest
from repro_image.adapters.ledger_files import Ledger
from repro_image.adapters.model_folder import lay_out_copy, model_folder_digest
from repro_image.adapters.store import Store
from repro_image.core.comparison import Comparison, compare, moved_tag, too_weak
from repro_image.core.epoch import ClassGolden, ClassRecord
from repro_image.core.fingerprint import (
    CpuClass,
    NumericClass,
    class_differences,
)
from repro_image.core.golden import Golden, recorded_request
from repro_image.core.ledger import StoredEpoch
from repro_image.core.moment import timestamp
from repro_image.core.project import ImageSpec
from repro_image.core.reference import ImageReference
from repro_image.core.reporter import Reporter
from repro_image.core.whatif import WhatIf, changed_engine, changed_request, refuse_impossible
from repro_image.errors import (
    OtherInputsError,
    TooFewCoresError,
    UnknownEpochError,
)
from repro_image.steps.build import make_image, restore_tag
from repro_image.steps.fetch import ensure_model
from repro_image.steps.judge import Judging, before_run, run_and_judge
from repro_image.steps.plan import plan_image
from repro_image.steps.pull import pull_epoch
from repro_image.steps.ready import Ready, ready_for
from repro_image.steps.record import (
    Asking,
    ask_for_record,
    class_golden,
    class_of,
    laid_out_model,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What `verify` found.

    image:    config digest that was asked.
    runs:     how often the golden was run.
    sides:    the two goldens that were compared; None where nothing ran.
    recorded: digest of the class record that `--record` added.
    """

    epoch: StoredEpoch
    reference: str
    image: str
    comparison: Comparison
    golden: ClassGolden
    numeric_class: NumericClass | None
    runs: int
    sides: tuple[Golden, Golden] | None = None
    recorded: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapters:
    """What a step of verify works with."""

    project: Project
    store: Store
    engine: Engine
    reporter: Reporter


def verify(
    project: Project,
    reference: ImageReference,
    *,
    store: Store,
    engine: Engine,
    reporter: Reporter,
    now: Callable[[], datetime],
    what_if: WhatIf,
    model: Path | None = None,
    repeat: int = 1,
    fail_fast: bool = False,
    rebuild: bool = False,
    record: bool = False,
    across: bool = False,
    must_see: float | None = None,
) -> Verification:
    """Return the verdict on the image that ``reference`` names.

    what_if, model: change the subject on purpose; never recorded.
    repeat:         how often the golden is run, each time in a new container.
    fail_fast:      stop at the first difference, within a run too; the rest is not asked and not compared.
    rebuild:        make the image again from the locks first; it must be the epoch's.
    record:         where this machine's class has no golden yet, add one to the epoch.
    across:         where the class differs, judge by replay and noise floor.
    must_see:       the per-token change that the comparison has to find with 99 %.
    """
    adapters = Adapters(project=project, store=store, engine=engine, reporter=reporter)
    stored = find_epoch(project, reference)
    epoch = stored.epoch
    goldens = Goldens(project.lock_folder(epoch.image_name) / "goldens")
    entries = {entry.numeric_class: (entry, goldens.read(entry.golden)) for entry in stored.goldens}
    name = str(asked_name(reference, stored))
    if rebuild:
        _rebuild(stored, adapters)
    image = resolve_image(reference, stored, adapters)
    if isinstance(image, Comparison):
        return _without_run(stored, name, image, found=image.images.found if image.images else "")
    reporter.line(f"{name} is {epoch.image.config}")
    ready = ready_for(
        stored, image, what_if=what_if, engine=engine, threads=threads_of(project, stored, what_if)
    )
    if isinstance(ready, Comparison):
        return _without_run(stored, name, ready, found=epoch.image.config)
    entry, golden = entries[choose_entry(stored.goldens, ready.wanted).numeric_class]
    if record and not ready.cpuset:
        raise TooFewCoresError(ready.threads)
    judging = Judging(
        entry=entry,
        golden=golden,
        across=across,
        repeat=repeat,
        fail_fast=fail_fast,
        doubt=what_if.is_empty and model is None and repeat == 1 and not fail_fast,
    )
    subject = entry.fingerprint.subject
    refuse_impossible(
        what_if,
        recorded_request(golden),
        engine=subject.engine,
        environment=subject.environment,
        on_gpu=bool(ready.gpus),
    )
    differences = class_differences(entry.fingerprint.numeric_class, ready.wanted)
    if record and differences:
        early = too_weak(golden.token_count, change=must_see) if must_see is not None else None
    else:
        early = before_run(judging, ready, must_see=must_see)
    if early:
        return _without_run(stored, name, early, found=epoch.image.config, wanted=ready.wanted, golden=entry)
    with store.workspace() as folder:
        asking = asking_of(stored, entry, golden, image, ready, what_if, model, folder, adapters)
        if differences and record:
            return _record_class(stored, name, asking, goldens, adapters, now)
        judged = run_and_judge(asking, judging, engine=engine, store=store, reporter=reporter)
    return Verification(
        epoch=stored,
        reference=name,
        image=epoch.image.config,
        comparison=judged.comparison,
        golden=entry,
        numeric_class=judged.numeric_class,
        runs=judged.runs,
        sides=judged.sides,
    )


def find_epoch(project: Project, reference: ImageReference) -> StoredEpoch:
    """Return the newest epoch that ``reference`` names, in any image's ledger.

    A tag is looked up by its name, a digest as config or manifest digest.
    Raises: UnknownEpochError; LedgerError when any record of that ledger is broken.
    """
    known = []
    for image in project.images():
        for stored in reversed(Ledger(project.lock_folder(image), image).read()):
            epoch = stored.epoch
            digests = {epoch.image.config, *(manifest.digest for manifest in stored.manifests)}
            is_tag = reference.tag == epoch.tag and reference.repository in (None, epoch.repository)
            if is_tag or (reference.tag is None and reference.digest in digests):
                return stored
            known.append(f"{epoch.repository}:{epoch.tag}")
    raise UnknownEpochError(str(reference), known=tuple(known))


def threads_of(project: Project, stored: StoredEpoch, what_if: WhatIf) -> int:
    """Return the cores of the run: part of the class on the CPU, of no weight on a GPU."""
    numeric_class = stored.epoch.first_class.fingerprint.numeric_class
    if what_if.threads is not None:
        return what_if.threads
    if isinstance(numeric_class, CpuClass):
        return numeric_class.threads
    return project.image(stored.epoch.image_name).golden.threads


def choose_entry(entries: Sequence[ClassGolden], wanted: NumericClass) -> ClassGolden:
    """Return the epoch's golden of the class ``wanted``, else the one that differs in the fewest fields."""
    return min(entries, key=lambda entry: len(class_differences(entry.fingerprint.numeric_class, wanted)))


def asked_name(reference: ImageReference, stored: StoredEpoch) -> ImageReference:
    """Return the full name that the engine is asked for."""
    epoch = stored.epoch
    if reference.tag is None:
        return ImageReference(digest=epoch.image.manifests[0].digest)
    return ImageReference(repository=epoch.repository, tag=epoch.tag)


def resolve_image(reference: ImageReference, stored: StoredEpoch, adapters: Adapters) -> str | Comparison:
    """Return the id of the image that ``reference`` names now, once and for all, or the verdict that the tag
    has moved: in the engine, or by what the digest beside it says.
    """
    epoch = stored.epoch
    manifests = {manifest.digest for manifest in stored.manifests}
    if reference.digest is not None and reference.digest not in {epoch.image.config, *manifests}:
        return moved_tag(epoch.image.config, reference.digest)
    found = adapters.engine.image(str(asked_name(reference, stored)))
    if found is None:
        found = pull_epoch(stored, engine=adapters.engine, reporter=adapters.reporter)
    if found.id in manifests:
        return found.id
    adapters.reporter.status("the tag names another manifest: reading its configuration")
    config = config_digest(adapters.engine, found)
    return found.id if config == epoch.image.config else moved_tag(epoch.image.config, config)


def _rebuild(stored: StoredEpoch, adapters: Adapters) -> None:
    """Make the epoch's image again from the locks, whatever is in the local store."""
    epoch = stored.epoch
    plan = plan_image(adapters.project, epoch.image_name)
    parts = tuple(
        field
        for field in type(plan.inputs).__struct_fields__
        if getattr(plan.inputs, field) != getattr(epoch.inputs, field)
    )
    name = f"{epoch.repository}:{epoch.tag}"
    if parts:
        raise OtherInputsError(name, parts=parts, revision=epoch.source.get("revision"))
    adapters.engine.require_suitable()
    built = make_image(
        adapters.project,
        plan,
        store=adapters.store,
        engine=adapters.engine,
        reporter=adapters.reporter,
        use_cache=True,
    )
    restore_tag(plan, epoch, built, engine=adapters.engine)
    adapters.reporter.line("rebuilt from the locks: the same image, bit for bit")


def asking_of(
    stored: StoredEpoch,
    entry: ClassGolden,
    golden: Golden,
    image: str,
    ready: Ready,
    what_if: WhatIf,
    model: Path | None,
    folder: Path,
    adapters: Adapters,
) -> Asking:
    """Return how the epoch's golden is asked for again: subject and request come from the epoch, not from
    the project.
    """
    spec: ImageSpec = adapters.project.image(stored.epoch.image_name)
    subject = entry.fingerprint.subject
    if model is None:
        lock = adapters.project.model_lock(stored.epoch.image_name)
        if lock.digest != subject.model:
            name = f"{stored.epoch.repository}:{stored.epoch.tag}"
            raise OtherInputsError(name, parts=("model",), revision=stored.epoch.source.get("revision"))
        ensure_model(
            adapters.project,
            stored.epoch.image_name,
            lock,
            store=adapters.store,
            engine=adapters.engine,
            reporter=adapters.reporter,
        )
        model_folder, model_digest = laid_out_model(adapters.store, lock, folder), lock.digest
    else:
        model_digest = model_folder_digest(model)
        model_folder = lay_out_copy(model, folder / "model")
    return Asking(
        image=image,
        config=stored.epoch.image.config,
        model=model_folder,
        model_digest=model_digest,
        engine=changed_engine(subject.engine, what_if),
        environment=what_if.environment,
        request=changed_request(golden.request, what_if),
        threads=ready.threads,
        cpuset=ready.cpuset,
        memory_gib=spec.golden.memory_gib,
        timeout_s=spec.golden.timeout_s,
        host=ready.host,
        gpus=ready.gpus,
    )


def _record_class(
    stored: StoredEpoch,
    name: str,
    asking: Asking,
    goldens: Goldens,
    adapters: Adapters,
    now: Callable[[], datetime],
) -> Verification:
    """Add this machine's class to the epoch: two runs that agree, as for the first class."""
    ledger = Ledger(adapters.project.lock_folder(stored.epoch.image_name), stored.epoch.image_name)
    ledger.check_writable()
    recording = ask_for_record(
        asking, engine=adapters.engine, store=adapters.store, reporter=adapters.reporter
    )
    answer = recording.answer
    entry = class_golden(asking, recording, goldens=goldens)
    record = ClassRecord(follows=stored.digest, added=entry, recorded_at=timestamp(now()), tool=__version__)
    added = ledger.append_class(stored, record)
    return Verification(
        epoch=stored,
        reference=name,
        image=stored.epoch.image.config,
        comparison=compare(answer.golden, answer.golden),
        golden=entry,
        numeric_class=class_of(asking, answer.inside),
        runs=2,
        recorded=added.digest,
    )


def _without_run(
    stored: StoredEpoch,
    name: str,
    comparison: Comparison,
    *,
    found: str,
    wanted: NumericClass | None = None,
    golden: ClassGolden | None = None,
) -> Verification:
    """Return a verdict that needed no run. golden: what it is about; by default that of the first class."""
    return Verification(
        epoch=stored,
        reference=name,
        image=found,
        comparison=comparison,
        golden=golden or stored.epoch.first_class,
        numeric_class=wanted,
        runs=0,
    )
