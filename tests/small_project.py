"""A project whose image is built in seconds: a Debian root with Python, and one small wheel."""

import shutil
import uuid
from pathlib import Path

import msgspec

from repro_image.adapters.debian import resolve_debs
from repro_image.adapters.files import Project
from repro_image.adapters.ledger_files import Ledger
from repro_image.adapters.pip_settings import read_pip_settings
from repro_image.adapters.store import Store
from repro_image.adapters.web import Web
from repro_image.core.epoch import ImageIdentity, Manifest
from repro_image.core.inputs import base_inputs
from repro_image.core.ledger import StoredEpoch
from repro_image.core.lockfile import DebianLock, print_json_lock, print_requirements
from repro_image.core.project import DebianBase, Settings
from repro_image.core.reporter import Reporter
from repro_image.steps.fetch import fetch_debs, make_root_in
from repro_image.steps.fresh import python_inputs
from repro_image.steps.plan import plan_image
from tests.ledger_samples import sample_class, sample_epoch
from tests.scratch import REPOSITORY, Scratch

IMAGE, WHEEL = "small", "packaging"
_REPOSITORY = 'repository = "repro-image"'
_LAST_LINE = (
    '    find /out -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +\n'
    "\n{{ packages_stage(groups, source_date_epoch) }}\n"
)


def lay_out(folder: Path, store: Store, reporter: Reporter) -> Scratch:
    """Return the project with its locks, made without a resolver; nothing is built yet."""
    scratch = Scratch(folder, store.root, IMAGE)
    settings = (folder / "pyproject.toml").read_text()
    assert _REPOSITORY in settings
    settings = settings.replace(_REPOSITORY, f'repository = "repro-image-test-{uuid.uuid4().hex[:8]}"')
    (folder / "pyproject.toml").write_text(settings)
    (folder / "images" / IMAGE).mkdir()
    shutil.copy(folder / "images/vllm-cpu/Dockerfile.j2", folder / "images" / IMAGE)
    shutil.copy(folder / "images/vllm-cpu/image.toml", folder / "images" / IMAGE)
    (folder / f"requirements/{IMAGE}.in").write_text(f"{WHEEL}\n")
    scratch.locks.mkdir()
    shutil.copy(REPOSITORY / "locks/vllm-cpu/model.json", scratch.locks)
    project = Project(folder)
    debian = project.base_lock("vllm-cpu")
    if not store.path(debian.root).exists():  # a mirror may have dropped what is locked
        debian = _lock_again(project, store, reporter)
    known = project.requirements_lock("vllm-cpu")
    requirements = msgspec.structs.replace(
        known,
        inputs=python_inputs(project, IMAGE, resolver="pip-tools", root=debian.root),
        root=debian.root,
        wheels=tuple(wheel for wheel in known.wheels if wheel.name == WHEEL),
    )
    project.write_lock(IMAGE, "debian.json", print_json_lock(debian))
    project.write_lock(IMAGE, "requirements.txt", print_requirements(requirements))
    return scratch


def _lock_again(project: Project, store: Store, reporter: Reporter) -> DebianLock:
    base, settings = project.image(IMAGE).base, Settings()
    assert isinstance(base, DebianBase)
    with store.workspace() as folder:
        resolved = resolve_debs(base, settings=settings, workspace=folder)
    moment, packages = resolved.source_date_epoch, resolved.packages
    web = Web(read_pip_settings())
    fetch_debs(packages, image=IMAGE, settings=settings, store=store, web=web, reporter=reporter)
    return DebianLock(
        inputs=base_inputs(base),
        suite=base.suite,
        source_date_epoch=moment,
        root=make_root_in(store, packages, source_date_epoch=moment, reporter=reporter),
        packages=packages,
    )


def change_each_time(scratch: Scratch, command: str) -> None:
    """Let the image's recipe run ``command``, which writes below $etc or /out, before times are set."""
    path = scratch.folder / "images" / IMAGE / "Dockerfile.j2"
    text = path.read_text()
    assert _LAST_LINE in text
    path.write_text(text.replace(_LAST_LINE, f"    {command}; \\\n{_LAST_LINE}"))


def record(scratch: Scratch, *, config: str, manifest: str, engine_id: str) -> StoredEpoch:
    """Append an epoch of an image that was built, as if it had answered. engine_id: the builder's."""
    project = Project(scratch.folder)
    plan = plan_image(project, IMAGE)
    media_type = "application/vnd.oci.image.manifest.v1+json"
    form = Manifest(digest=manifest, media_type=media_type, compression="uncompressed")
    epoch = sample_epoch(
        image_name=IMAGE,
        repository=plan.repository,
        tag=plan.epoch_tag(1),
        image=ImageIdentity(config=config, manifests=(form,), size_bytes=1, layers=1),
        inputs=plan.inputs,
        input_digest=plan.inputs.digest,
        first_class=sample_class(config=config),
        builder={"engine_id": engine_id},
    )
    return Ledger(project.lock_folder(IMAGE), IMAGE).append_epoch(lambda number, previous: epoch)
