"""Build an epoch's image once more from nothing: the proof that it is what its locks say."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from repro_image import __version__
from repro_image.adapters.engine import Engine
from repro_image.adapters.files import Project
from repro_image.adapters.ledger_files import Ledger
from repro_image.adapters.store import Store
from repro_image.core.epoch import ProofRecord
from repro_image.core.image_diff import ImageDifference
from repro_image.core.ledger import StoredEpoch
from repro_image.core.moment import timestamp
from repro_image.core.reporter import Reporter
from repro_image.steps.build import builder_versions, make_image
from repro_image.steps.diff import diff_images, find_image
from repro_image.steps.plan import plan_image


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What a rebuild came to.

    builder:         what built it, as the record names it.
    is_other_engine: whether the epoch's image came from another engine than the rebuild.
    record:          digest of the proof that joined the epoch; None where the image came out otherwise.
    difference:      what differs, from the epoch's image to the rebuilt one; None where nothing does.
    """

    config: str
    builder: dict[str, str]
    is_other_engine: bool
    record: str | None = None
    difference: ImageDifference | None = None


def prove(
    project: Project,
    stored: StoredEpoch,
    *,
    store: Store,
    engine: Engine,
    reporter: Reporter,
    now: Callable[[], datetime],
) -> Proof:
    """Rebuild, without cache, the image of an epoch that has the project's inputs and is at hand.

    Raises: every ReproImageError; the ledger is as it was then.
    """
    epoch = stored.epoch
    plan = plan_image(project, epoch.image_name)
    ledger = Ledger(project.lock_folder(epoch.image_name), epoch.image_name)
    ledger.check_writable()
    reporter.line("building once more, every step again")
    built = make_image(project, plan, store=store, engine=engine, reporter=reporter, use_cache=False)
    name = f"{plan.repository}:{plan.build_tag}"
    builder = builder_versions(engine, plan)
    proof = Proof(
        config=built.config,
        builder=builder,
        is_other_engine=builder["engine_id"] != epoch.builder.get("engine_id", builder["engine_id"]),
    )
    try:
        if built.config != epoch.image.config:
            sides = (f"{epoch.repository}:{epoch.tag}", name)
            found = [find_image(side, engine=lambda: engine, project=lambda: project) for side in sides]
            difference = diff_images(*found, ignore=(), reporter=reporter)
            return replace(proof, difference=difference)
        record = ProofRecord(
            follows=stored.digest,
            config=built.config,
            builder=builder,
            recorded_at=timestamp(now()),
            tool=__version__,
        )
        return replace(proof, record=ledger.append_proof(stored, record).digest)
    finally:
        engine.untag(name)
