"""An epoch's image from where it was pushed: by digest, whatever a tag names there today."""

from repro_image.adapters.engine import Engine, ImageInfo
from repro_image.adapters.image_archive import config_digest
from repro_image.core.ledger import StoredEpoch
from repro_image.core.reference import registry_of
from repro_image.core.reporter import Reporter
from repro_image.errors import ImageMissingError, OtherImageError, PullError


def pull_epoch(stored: StoredEpoch, *, engine: Engine, reporter: Reporter) -> ImageInfo:
    """Return the epoch's image, pulled from the first place that gives it, under its own tag from now on.

    One that was pulled before and lost its tag is found by its digest, without a network.
    Raises: ImageMissingError with the last place's reason; OtherImageError where a manifest of the ledger
        names another image than its epoch, and then the image has no tag here.
    """
    epoch = stored.epoch
    name = f"{epoch.repository}:{epoch.tag}"
    reason = ""
    for push in reversed(stored.pushes):
        reference = push.record.reference
        found = engine.image(push.record.manifest.digest)
        if found is None:
            reporter.status(f"{name} is not here: pulling {reference}")
            try:
                engine.ensure_pulled(reference, reporter=reporter)
            except PullError as error:
                reason = f"{reference} could not be pulled: {_told(error, push.record.repository)}"
                continue
            found = engine.image(reference)
        if found is None:
            continue
        config = config_digest(engine, found)
        if config != epoch.image.config:
            engine.untag(reference)
            raise OtherImageError(reference, expected=epoch.image.config, found=config)
        engine.tag(found.id, epoch.repository, epoch.tag)
        return found
    raise ImageMissingError(name, pulled=reason)


def _told(error: PullError, repository: str) -> str:
    """Return the engine's reason; `ca` of the project does not reach the engine."""
    if "x509" not in error.reason:
        return error.reason
    place = f"/etc/docker/certs.d/{registry_of(repository)}/ca.crt"
    return f"{error.reason} (the engine trusts the certificate in {place} on its machine)"
