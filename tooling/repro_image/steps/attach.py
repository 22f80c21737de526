"""What an epoch's image is made of and how it was built, beside it in its registry."""

from repro_image import __version__
from repro_image.adapters.files import Project
from repro_image.adapters.referrers import Attachment, Subject, attach, referrers
from repro_image.adapters.registry_session import RegistrySession
from repro_image.adapters.store import Store
from repro_image.core import cyclonedx, provenance, spdx
from repro_image.core.epoch import Manifest
from repro_image.core.ledger import StoredEpoch
from repro_image.core.oci import DOCUMENT_LIMIT_BYTES
from repro_image.core.reporter import Reporter
from repro_image.steps.plan import plan_image
from repro_image.steps.sbom import bill_of, has_packages

_MEDIA_TYPES = {cyclonedx.MEDIA_TYPE, spdx.MEDIA_TYPE, provenance.MEDIA_TYPE}


def attach_documents(
    session: RegistrySession,
    project: Project,
    stored: StoredEpoch,
    manifest: Manifest,
    *,
    store: Store,
    reporter: Reporter,
) -> tuple[str, ...]:
    """Attach both bills and the provenance to the pushed manifest; return the digests of their manifests.

    Returns () where all of them are there, and where they cannot be made: the project's files are no longer
    those of the epoch, or its packages are not in the store.
    """
    epoch = stored.epoch
    there = {entry.get("artifactType") for entry in referrers(session, manifest.digest)}
    if there >= _MEDIA_TYPES:
        return ()
    plan = plan_image(project, epoch.image_name)
    if plan.inputs != epoch.inputs:
        reporter.line("nothing attached: the project's files are no longer those of this epoch")
        return ()
    if not has_packages(plan.locks, store):
        reporter.line("nothing attached: bring the packages with `repro-image fetch`, then push again")
        return ()
    bill = bill_of(project, epoch.image_name, store=store, reporter=reporter)
    statement = provenance.provenance_json(epoch, stored.digest, bill, manifest=manifest)
    documents = (
        (cyclonedx.MEDIA_TYPE, "bill.cdx.json", cyclonedx.cyclonedx_json(bill, version=__version__)),
        (spdx.MEDIA_TYPE, "bill.spdx.json", spdx.spdx_json(bill, version=__version__)),
        (provenance.MEDIA_TYPE, "provenance.json", statement),
    )
    pushed, _ = session.get("manifests", manifest.digest, limit_bytes=DOCUMENT_LIMIT_BYTES)
    subject = Subject(media_type=manifest.media_type, digest=manifest.digest, size=len(pushed))
    reporter.status("attaching bill of materials and provenance")
    attached = tuple(
        attach(
            session,
            subject,
            Attachment(media_type=media_type, data=text.encode(), title=title),
            store=store,
        )
        for media_type, title, text in documents
    )
    reporter.line("attached: bill of materials (CycloneDX, SPDX) and provenance (SLSA)")
    return attached
