"""Check, fetch, build, ask twice, record: from locks to a new epoch."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from repro_image import __version__
from repro_image.adapters.buildx import BuiltImage, build_image
from repro_image.adapters.contexts import lay_out_contexts
from repro_image.adapters.engine import Engine
from repro_image.adapters.files import DOCKERFILE, Project
from repro_image.adapters.git import source_of
from repro_image.adapters.goldens import Goldens
from repro_image.adapters.ledger_files import Ledger
from repro_image.adapters.shipped import compatibility_tables
from repro_image.adapters.store import Store
from repro_image.core.comparison import Comparison, compare
from repro_image.core.constraints import lock_findings
from repro_image.core.constraints_size import size_finding
from repro_image.core.demands import demands_of
from repro_image.core.epoch import ClassGolden, Epoch, ImageIdentity, Manifest
from repro_image.core.finding import errors_of
from repro_image.core.gpu import Gpu
from repro_image.core.layers import layer_groups
from repro_image.core.ledger import StoredEpoch
from repro_image.core.moment import timestamp
from repro_image.core.reporter import Reporter
from repro_image.core.suite import left_out
from repro_image.errors import (
    DiskTooSmallError,
    OtherImageError,
)
from repro_image.steps.base import base_contexts
from repro_image.steps.fetch import fetch_image
from repro_image.steps.fresh import require_fresh_locks
from repro_image.steps.hardware import Hardware, known_host, look_inside, require, require_hardware
from repro_image.steps.layers import packages_context
from repro_image.steps.plan import Plan, plan_image
from repro_image.steps.record import Asking, ask_for_record, class_golden, laid_out_model

# What a build takes of the engine's disk, in sizes of its packed wheels: stages and layers in the build
# cache, packed and unpacked layers in the image store. Measured: 38 GB for the 3.9 GB of vllm-cuda; light
# wheels unpack to more.
_SPACE_FACTOR = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOutcome:
    """How a build ended.

    did:        ``recorded`` a new epoch, found everything ``unchanged``, ``rebuilt`` the missing image of an
                epoch,
                or ``built`` without a golden.
    comparison: against the epoch before, where there is one with a golden of the same class.
    """

    did: Literal["recorded", "unchanged", "rebuilt", "built"]
    reference: str
    config: str
    epoch: StoredEpoch | None
    comparison: Comparison | None = None
    against: int | None = None


def build(
    project: Project,
    name: str,
    *,
    store: Store,
    engine: Engine,
    reporter: Reporter,
    now: Callable[[], datetime],
    with_golden: bool = True,
    use_cache: bool = True,
) -> BuildOutcome:
    """Build one image and record its epoch; do only what the files' digests say is needed.

    Raises: every ReproImageError; after any of them locks, goldens and ledger are as they were.
    """
    plan = plan_image(project, name)
    ledger = Ledger(project.lock_folder(name), name)
    epochs = ledger.read()
    latest = epochs[-1] if epochs else None
    is_unchanged = latest is not None and latest.epoch.input_digest == plan.inputs.digest
    if is_unchanged and latest is not None and is_at_hand(latest, engine):
        return BuildOutcome(
            did="unchanged",
            reference=_reference(latest.epoch),
            config=latest.epoch.image.config,
            epoch=latest,
        )
    require_fresh_locks(project, name)
    engine.require_suitable()
    tables = compatibility_tables()
    require(name, errors_of(lock_findings(plan.image, plan.locks, tables)))
    hardware = None
    if with_golden and not is_unchanged:
        demands = demands_of(plan.image, plan.locks, tables)
        hardware = require_hardware(name, demands, known_host(engine), threads=plan.image.golden.threads)
        ledger.check_writable()
    for lane in left_out(plan.image.golden.suite, on_gpu=plan.image.gpu is not None):
        reporter.line(f"suite {plan.image.golden.suite}: {lane} is left out: the CPU has no such engine")
    built = make_image(project, plan, store=store, engine=engine, reporter=reporter, use_cache=use_cache)
    _require_size(plan, built, engine)
    if is_unchanged and latest is not None:
        restore_tag(plan, latest.epoch, built, engine=engine)
        return BuildOutcome(
            did="rebuilt", reference=_reference(latest.epoch), config=built.config, epoch=latest
        )
    if hardware is None:
        return BuildOutcome(
            did="built", reference=f"{plan.repository}:{plan.build_tag}", config=built.config, epoch=None
        )
    return _record(
        project,
        plan,
        built,
        hardware=hardware,
        ledger=ledger,
        store=store,
        engine=engine,
        reporter=reporter,
        now=now,
    )


def is_at_hand(stored: StoredEpoch, engine: Engine) -> bool:
    """Return whether the epoch's tag names the epoch's image in the local store."""
    found = engine.image(_reference(stored.epoch))
    return found is not None and found.id in {manifest.digest for manifest in stored.manifests}


def _reference(epoch: Epoch) -> str:
    return f"{epoch.repository}:{epoch.tag}"


def make_image(
    project: Project, plan: Plan, *, store: Store, engine: Engine, reporter: Reporter, use_cache: bool
) -> BuiltImage:
    """Bring everything that the locks name into the store and build the image under its build tag.

    use_cache: False leaves every step of the Dockerfile to BuildKit and takes nothing that was made before.
    """
    _require_space(plan, store, engine)
    fetch_image(project, plan.name, store=store, engine=engine, reporter=reporter)
    project.write_lock(plan.name, DOCKERFILE, plan.dockerfile)
    lock = plan.locks
    with store.workspace() as folder:
        dockerfile = folder / "Dockerfile"
        dockerfile.write_text(plan.dockerfile)
        base = base_contexts(lock.base, folder, store=store, engine=engine)
        with ExitStack() as stack:
            packages: dict[str, str] = {}
            if use_cache:
                making = packages_context(plan, folder, base, store=store, engine=engine, reporter=reporter)
                packages = stack.enter_context(making)
            if not packages:
                reporter.status("checking wheels against their digests")
                groups = layer_groups(lock.requirements.wheels)
                packages = lay_out_contexts(
                    folder, groups, installer=lock.requirements.installer, store=store
                )
            return build_image(
                dockerfile,
                name=f"{plan.repository}:{plan.build_tag}",
                contexts={**packages, **base},
                source_date_epoch=lock.base.source_date_epoch,
                use_cache=use_cache,
                reporter=reporter,
            )


def _require_size(plan: Plan, built: BuiltImage, engine: Engine) -> None:
    """Hold the image against its budget before anything is recorded. Raises: BrokenConstraintsError."""
    info = engine.image(built.manifest)
    finding = size_finding(plan.image, plan.locks, size_bytes=info.size_bytes) if info else None
    require(plan.name, errors_of((finding,)) if finding else ())


def _require_space(plan: Plan, store: Store, engine: Engine) -> None:
    """Refuse to begin what the disk cannot hold: a full disk half way leaves a broken engine store."""
    needed = _SPACE_FACTOR * sum(wheel.size_bytes for wheel in plan.locks.requirements.wheels)
    folder = engine.versions.folder
    if folder is not None:  # an engine on another machine keeps its own count
        free = shutil.disk_usage(folder).free
        if free < needed and engine.image(f"{plan.repository}:{plan.build_tag}") is None:
            raise DiskTooSmallError(folder, needed_bytes=needed, free_bytes=free)


def restore_tag(plan: Plan, epoch: Epoch, built: BuiltImage, *, engine: Engine) -> None:
    """Give the rebuilt image its epoch's tag back. Raises: OtherImageError unless it is the epoch's image."""
    if built.config != epoch.image.config:
        raise OtherImageError(_reference(epoch), expected=epoch.image.config, found=built.config)
    engine.tag(built.manifest, epoch.repository, epoch.tag)
    engine.untag(f"{plan.repository}:{plan.build_tag}")


def _record(
    project: Project,
    plan: Plan,
    built: BuiltImage,
    *,
    hardware: Hardware,
    ledger: Ledger,
    store: Store,
    engine: Engine,
    reporter: Reporter,
    now: Callable[[], datetime],
) -> BuildOutcome:
    """Ask the image twice and append the epoch. The tag moves last, so a crash leaves no tag without an
    epoch.
    """
    goldens = Goldens(project.lock_folder(plan.name) / "goldens")
    gpus = _gpus_inside(plan, built, hardware, engine)
    with store.workspace() as folder:
        asking = Asking(
            image=built.manifest,
            config=built.config,
            model=laid_out_model(store, plan.locks.model, folder),
            model_digest=plan.locks.model.digest,
            engine=plan.image.golden.engine,
            environment={},
            request=plan.request,
            threads=plan.image.golden.threads,
            cpuset=hardware.cpuset,
            memory_gib=plan.image.golden.memory_gib,
            timeout_s=plan.image.golden.timeout_s,
            host=hardware.host,
            gpus=gpus,
        )
        recording = ask_for_record(asking, engine=engine, store=store, reporter=reporter)
    entry = class_golden(asking, recording, goldens=goldens)
    identity = _identity(built, engine)
    source = source_of(project.root)
    builder = builder_versions(engine, plan)

    def make(number: int, previous: str | None) -> Epoch:
        return Epoch(
            number=number,
            previous=previous,
            image_name=plan.name,
            repository=plan.repository,
            tag=plan.epoch_tag(number),
            image=identity,
            inputs=plan.inputs,
            input_digest=plan.inputs.digest,
            first_class=entry,
            recorded_at=timestamp(now()),
            tool=__version__,
            builder=builder,
            source=source,
        )

    before = ledger.read()
    stored = ledger.append_epoch(make)
    engine.tag(built.manifest, stored.epoch.repository, stored.epoch.tag)
    engine.untag(f"{plan.repository}:{plan.build_tag}")
    comparison, against = _compare_with_last(before, entry, goldens)
    return BuildOutcome(
        did="recorded",
        reference=_reference(stored.epoch),
        config=built.config,
        epoch=stored,
        comparison=comparison,
        against=against,
    )


def _gpus_inside(plan: Plan, built: BuiltImage, hardware: Hardware, engine: Engine) -> tuple[Gpu, ...]:
    """Return the run's GPUs as the image sees them. Raises: BrokenConstraintsError."""
    if not hardware.gpus:
        return ()
    demands = demands_of(plan.image, plan.locks, compatibility_tables())
    seen, broken = look_inside(engine, built.manifest, hardware.gpus, demands, hardware.host, environment={})
    require(plan.name, broken)
    return seen


def _identity(built: BuiltImage, engine: Engine) -> ImageIdentity:
    info = engine.image(built.manifest)
    return ImageIdentity(
        config=built.config,
        manifests=(Manifest(digest=built.manifest, media_type=built.media_type, compression="uncompressed"),),
        size_bytes=info.size_bytes if info else 0,
        layers=len(info.diff_ids) if info else 0,
    )


def builder_versions(engine: Engine, plan: Plan) -> dict[str, str]:
    versions = engine.versions
    installer = plan.locks.requirements.installer
    return {
        "engine": versions.engine,
        "engine_id": versions.id,
        "buildx": versions.buildx or "unknown",
        "installer": f"{installer.name} {installer.version}",
    }


def _compare_with_last(
    before: tuple[StoredEpoch, ...], entry: ClassGolden, goldens: Goldens
) -> tuple[Comparison | None, int | None]:
    """Return how the new golden compares with the newest earlier one of the same class."""
    for stored in reversed(before):
        for old in stored.goldens:
            if old.numeric_class == entry.numeric_class:
                return compare(goldens.read(old.golden), goldens.read(entry.golden)), stored.epoch.number
    return None, None
