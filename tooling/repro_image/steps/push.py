"""An epoch's image to its registry: packed, sent without what is there, read back, written down."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from repro_image import __version__
from repro_image.adapters.downloads import in_parallel
from repro_image.adapters.engine import Engine
from repro_image.adapters.files import Project
from repro_image.adapters.image_archive import read_documents
from repro_image.adapters.image_blobs import Blobs, open_engine
from repro_image.adapters.ledger_files import Ledger
from repro_image.adapters.package_index import open_web
from repro_image.adapters.packed_layers import pack_layer
from repro_image.adapters.registry_push import Blob, push_blob, push_document
from repro_image.adapters.registry_session import Actions, RegistrySession
from repro_image.adapters.store import Store
from repro_image.adapters.web import Web
from repro_image.core.epoch import Manifest as ManifestForm
from repro_image.core.epoch import PushRecord
from repro_image.core.image_manifest import ImageDocuments, parse_documents
from repro_image.core.ledger import StoredEpoch
from repro_image.core.moment import timestamp
from repro_image.core.oci import MANIFESTS, Descriptor, Manifest, manifest_bytes
from repro_image.core.reference import registry_of
from repro_image.core.reporter import Reporter
from repro_image.errors import (
    DownloadError,
    ImageMissingError,
    NoRegistryError,
    NotInRegistryError,
    OtherImageError,
    PushError,
    TagTakenError,
)
from repro_image.steps.attach import attach_documents
from repro_image.steps.meter import Meter, megabytes

_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """What a push did: ``pushed`` the image, or found it ``there``.

    reference:  repository and manifest digest.
    record:     digest of the record that joined the epoch, or that was there.
    layers:     how many of the image's layers had to be sent; sent_bytes: what went over the line.
    """

    did: Literal["pushed", "there"]
    reference: str
    record: str
    layers: int
    sent_bytes: int


def push_epoch(
    project: Project,
    stored: StoredEpoch,
    *,
    store: Store,
    engine: Engine,
    reporter: Reporter,
    now: Callable[[], datetime],
) -> Pushed:
    """Bring the image of an epoch to the project's registry under its tag, and record where it is.

    Nothing is recorded before the registry has given back the manifest and it names the epoch's image. What
    the image is made of is attached last: where that fails, the next push does it.
    Raises: NoRegistryError (3); PushError, TagTakenError, RegistryAccessError, CredentialsError and all else
        that a registry or the disk can do (5); ImageMissingError (5), OtherImageError (10).
    """
    epoch = stored.epoch
    ledger = Ledger(project.lock_folder(epoch.image_name), epoch.image_name)
    repository = f"{project.settings.repository}/{epoch.image_name}"
    web = open_web(project.settings)
    session = open_repository(f"{repository}:{epoch.tag}", engine=engine, web=web, actions="pull,push")
    ledger.check_writable()
    reporter.status(f"asking {session.registry} for {session.reference}")
    found = _under_tag(session, config=epoch.image.config)
    layers, sent = 0, 0
    if found is None:
        layers, sent = _send(session, stored, ledger.read(), store=store, engine=engine, reporter=reporter)
        found = _under_tag(session, config=epoch.image.config)
    if found is None:
        raise PushError(
            session.reference, reason="the registry lost it again", where=f"{session.address}/manifests"
        )
    digest, manifest = found
    record = PushRecord(
        follows=stored.digest,
        repository=repository,
        manifest=ManifestForm(digest=digest, media_type=MANIFESTS[0], compression=manifest.compression),
        config=manifest.config.digest,
        size_bytes=sum(layer.size for layer in manifest.layers),
        recorded_at=timestamp(now()),
        tool=__version__,
    )
    push = ledger.append_push(stored, record)
    attach_documents(session, project, stored, record.manifest, store=store, reporter=reporter)
    return Pushed(
        did="pushed" if sent else "there",
        reference=record.reference,
        record=push.digest,
        layers=layers,
        sent_bytes=sent,
    )


def require_registry(project: Project) -> None:
    """Raise NoRegistryError where the project names no registry to push to."""
    if registry_of(f"{project.settings.repository}/image") is None:
        raise NoRegistryError(project.settings.repository)


def open_repository(reference: str, *, engine: Engine, web: Web, actions: Actions) -> RegistrySession:
    """Return the repository that ``reference``, with its tag, names.

    It is asked where the engine asks, its mirrors left out. Raises: NoRegistryError.
    """
    repository = reference.rpartition(":")[0]
    registry = registry_of(repository)
    if registry is None:
        raise NoRegistryError(repository)
    return RegistrySession(reference, engine.registry_addresses(registry)[-1], web, actions=actions)


def _under_tag(session: RegistrySession, *, config: str) -> tuple[str, Manifest] | None:
    """Return what the tag names in the registry, or None. Raises: TagTakenError unless it is the image."""
    try:
        digest, found = session.document(session.tag)
    except NotInRegistryError:
        return None
    except DownloadError as error:
        raise PushError(session.reference, reason=error.reason, where=error.where) from error
    if not isinstance(found, Manifest):
        raise TagTakenError(session.reference, expected=config, found=f"the index {digest}")
    if found.config.digest != config:
        raise TagTakenError(session.reference, expected=config, found=found.config.digest)
    return digest, found


def _send(
    session: RegistrySession,
    stored: StoredEpoch,
    epochs: Sequence[StoredEpoch],
    *,
    store: Store,
    engine: Engine,
    reporter: Reporter,
) -> tuple[int, int]:
    """Send what the registry lacks of the image, its manifest last; return how many layers and bytes."""
    blobs, documents = _in_engine(stored, engine)
    config, config_bytes = documents.manifest.config, blobs.small(documents.manifest.config.digest) or b""
    known = _known_layers(session, epochs)
    known = {diff_id: known[diff_id] for diff_id in documents.diff_ids if diff_id in known}
    known = {diff_id: layer for diff_id, layer in known.items() if session.has_blob(layer.digest)}
    with store.workspace() as folder:
        packed = _pack(blobs, documents, known, folder, reporter)
        (folder / "config").write_bytes(config_bytes)
        files = [Blob(layer.digest, layer.size, folder / diff_id[7:]) for diff_id, layer in packed.items()]
        files.append(Blob(config.digest, len(config_bytes), folder / "config"))
        sent = push_files(session, files, reporter=reporter)
    layers = {**known, **packed}
    data = manifest_bytes(config, (layers[diff_id] for diff_id in documents.diff_ids))
    push_document(session, data, media_type=MANIFESTS[0], name=session.tag)
    size = sum(blob.size_bytes for blob in sent) + len(data)
    count = len({blob.digest for blob in sent} & {layer.digest for layer in packed.values()})
    reporter.line(f"sent {count} of {len(documents.diff_ids)} layers, {megabytes(size)} MB")
    return count, size


def push_files(session: RegistrySession, files: Sequence[Blob], *, reporter: Reporter) -> list[Blob]:
    """Send the files that the repository lacks, several at a time; return which those were."""
    meter = Meter(f"pushing to {session.registry}", sum(blob.size_bytes for blob in files), reporter.status)
    sent: list[Blob] = []
    lock = threading.Lock()

    def send(blob: Blob) -> None:
        if push_blob(session, blob, on_bytes=meter.add):
            with lock:
                sent.append(blob)
        else:
            meter.add(blob.size_bytes)

    # The largest first: the last one to end then is a small one.
    largest_first = sorted(files, key=lambda blob: -blob.size_bytes)
    in_parallel(send, largest_first, stop=session.web.stop, threads=_THREADS)
    return sent


def _in_engine(stored: StoredEpoch, engine: Engine) -> tuple[Blobs, ImageDocuments]:
    """Return the image that the epoch's tag names here. Raises: ImageMissingError, OtherImageError."""
    epoch = stored.epoch
    name = f"{epoch.repository}:{epoch.tag}"
    image = engine.image(name)
    if image is None:
        raise ImageMissingError(name)
    blobs = open_engine(engine, image, name=name)
    documents = read_documents(blobs)
    if documents.manifest.config.digest != epoch.image.config:
        raise OtherImageError(name, expected=epoch.image.config, found=documents.manifest.config.digest)
    return blobs, documents


def _known_layers(session: RegistrySession, epochs: Sequence[StoredEpoch]) -> dict[str, Descriptor]:
    """Return, by diff ID, the packed layers of the newest epoch that the repository still has.

    The registry's own documents are the memory of what was packed as what: every machine can ask them, and
    the ledger's digest proves them.
    """
    repository = session.reference.rpartition(":")[0]
    for stored in reversed(epochs):
        for push in stored.pushes:
            if push.record.repository != repository:
                continue
            try:
                digest, _ = session.document(push.record.manifest.digest)
                manifest = session.get("manifests", digest, limit_bytes=2**22)[0]
                config = session.get("blobs", push.record.config, limit_bytes=2**22)[0]
            except NotInRegistryError:
                continue
            documents = parse_documents(push.record.reference, digest, manifest, config)
            return dict(zip(documents.diff_ids, documents.manifest.layers, strict=True))
    return {}


def _pack(
    blobs: Blobs,
    documents: ImageDocuments,
    known: Mapping[str, Descriptor],
    folder: Path,
    reporter: Reporter,
) -> dict[str, Descriptor]:
    """Write the layers that are not known to ``folder``, named by their diff IDs; return what they became."""
    diff_ids = {
        layer.digest: (diff_id, layer)
        for layer, diff_id in zip(documents.manifest.layers, documents.diff_ids, strict=True)
        if diff_id not in known
    }
    packed = {}
    for number, (digest, stream) in enumerate(blobs.streams(diff_ids), start=1):
        reporter.status(f"packing layer {number} of {len(diff_ids)}")
        diff_id, layer = diff_ids[digest]
        packed[diff_id] = pack_layer(stream, layer, folder / diff_id[7:], image=blobs.name)
    if packed:
        size = sum(layer.size for layer in packed.values())
        reporter.line(f"packed {len(packed)} of {len(documents.diff_ids)} layers into {megabytes(size)} MB")
    return packed
