"""The stage `packages` of an image, made of layers that are kept or made here instead of in BuildKit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from repro_image.adapters.buildx import build_image
from repro_image.adapters.contexts import lay_out_contexts
from repro_image.adapters.engine import PACKAGES_REPOSITORY, ROOT_REPOSITORY, Engine
from repro_image.adapters.host import available_memory_bytes
from repro_image.adapters.kept_layers import KeptLayers, LayerBlob
from repro_image.adapters.layer_loader import LayerLoader, ReadyLayer
from repro_image.adapters.layer_maker import made_at_once, make_layers
from repro_image.adapters.store import Store
from repro_image.core.canonical import canonical_digest
from repro_image.core.layer_stages import PACKAGES, LayerStage, layer_stages, python_digest, root_is_base
from repro_image.core.layered_image import AddedLayer
from repro_image.core.layers import UNPACKED_FACTOR, LayerGroup, layer_groups, memory_to_unpack
from repro_image.core.reporter import Reporter
from repro_image.errors import DiskFullError, EngineCallError
from repro_image.steps.plan import Plan

_LOCAL = "docker-image://"


@contextmanager
def packages_context(
    plan: Plan, folder: Path, base: Mapping[str, str], *, store: Store, engine: Engine, reporter: Reporter
) -> Iterator[dict[str, str]]:
    """Yield the build context that stands for the stage `packages`; nothing where BuildKit has to make it.

    That is where the Dockerfile says something else than the locks' layers in order, or where the engine runs
    on another machine and sees none of our folders. base: the build contexts of the stage `root`.
    """
    groups = layer_groups(plan.locks.requirements.wheels)
    epoch = plan.locks.base.source_date_epoch
    stages = layer_stages(plan.dockerfile, [group.name for group in groups], source_date_epoch=epoch)
    if stages is None or not groups or engine.versions.folder is None:
        yield {}
        return
    job = _Job(plan, groups, stages, folder=folder, store=store, engine=engine, reporter=reporter)
    unused = folder / "unused"  # BuildKit looks up every context that the Dockerfile names, needed or not
    unused.mkdir()
    waiting = "waiting for another build of the same packages"
    # Whoever ends first takes the name away.
    with store.locked(job.tag, on_wait=lambda: reporter.line(waiting)):
        name = job.load(_root_image(plan, folder, base, engine=engine, reporter=reporter))
        try:
            yield {PACKAGES: f"{_LOCAL}{name}", **dict.fromkeys(("wheels", "locks", "tools"), str(unused))}
        finally:
            for name in job.names:
                engine.untag(name)


def _root_image(
    plan: Plan, folder: Path, base: Mapping[str, str], *, engine: Engine, reporter: Reporter
) -> str:
    """Return the name of an image of the stage `root`, after making it where it is more than its base."""
    if root_is_base(plan.dockerfile) and "base" in base:
        return base["base"].removeprefix(_LOCAL)
    dockerfile = folder / "root.Dockerfile"
    dockerfile.write_text(plan.dockerfile)
    key = canonical_digest({"root": plan.locks.base.root, "dockerfile": plan.dockerfile})
    name = f"{ROOT_REPOSITORY}:{key.removeprefix('sha256:')[:16]}"
    build_image(
        dockerfile,
        name=name,
        contexts=base,
        source_date_epoch=plan.locks.base.source_date_epoch,
        target="root",
        reporter=reporter,
    )
    return name


class _Job:
    """One image's layers. Those that are kept go to the engine at once, the others as they are made."""

    def __init__(
        self,
        plan: Plan,
        groups: tuple[LayerGroup, ...],
        stages: tuple[LayerStage, ...],
        *,
        folder: Path,
        store: Store,
        engine: Engine,
        reporter: Reporter,
    ) -> None:
        self._plan, self._folder, self._store = plan, folder, store
        self._engine, self._reporter = engine, reporter
        self._groups, self._stages = groups, stages
        self._kept = KeptLayers(store)
        self._epoch = plan.locks.base.source_date_epoch
        python, installer = python_digest(plan.locks.base), plan.locks.requirements.installer.sha256
        self._keys = {
            stage.name: stage.key(group, installer=installer, python=python, source_date_epoch=self._epoch)
            for stage, group in zip(stages, groups, strict=True)
        }

    @property
    def tag(self) -> str:
        """The same for the same layers in the same store, which holds the lock of the name."""
        parts = [str(self._store.root), self._plan.locks.base.root, *self._keys.values()]
        return canonical_digest(parts).removeprefix("sha256:")[:16]

    @property
    def names(self) -> tuple[str, str]:
        """Which the engine's image may have while it is made."""
        return f"{PACKAGES_REPOSITORY}:{self.tag}", f"{PACKAGES_REPOSITORY}:{self.tag}-next"

    def load(self, root: str) -> str:
        """Return the name of the engine's image of ``root`` with all the layers on top."""
        loader = LayerLoader(
            self._engine, root, names=self.names, count=len(self._stages), source_date_epoch=self._epoch
        )
        missing = []
        for stage in self._stages:
            blob = self._kept.find(self._keys[stage.name])
            if blob is None:
                missing.append(stage)
            else:
                self._put(loader, stage.name, blob)
        loader.start()
        try:
            if missing:
                self._make(missing, root, loader)
            self._reporter.status("loading layers into the engine")
            return loader.close()
        except EngineCallError:
            self._refuse_rotten()
            raise
        finally:
            loader.give_up()

    def _refuse_rotten(self) -> None:
        """Raise CorruptFileError where a kept layer rotted; the engine says so in words of its own."""
        for key in self._keys.values():
            blob = self._kept.find(key)
            if blob is not None:
                self._store.verify(blob.digest)

    def _put(self, loader: LayerLoader, name: str, blob: LayerBlob) -> None:
        position = [stage.name for stage in self._stages].index(name)
        layer = AddedLayer(digest=blob.digest, size_bytes=blob.size_bytes, step=self._stages[position].step)
        loader.put(position, ReadyLayer(layer=layer, file=self._store.path(blob.digest)))

    def _make(self, stages: list[LayerStage], root: str, loader: LayerLoader) -> None:
        names = {stage.name for stage in stages}
        groups = [group for group in self._groups if group.name in names]
        needed = UNPACKED_FACTOR * sum(group.size_bytes for group in groups)
        free = self._store.free_bytes()
        if free < needed:
            raise DiskFullError(str(self._store.root), needed_bytes=needed, free_bytes=free)
        self._reporter.status("checking wheels against their digests")
        contexts = lay_out_contexts(
            self._folder / "contexts",
            groups,
            installer=self._plan.locks.requirements.installer,
            store=self._store,
        )

        def on_layer(name: str, blob: LayerBlob, file: Path) -> None:
            self._kept.keep(self._keys[name], file, blob)
            self._put(loader, name, blob)
            self._reporter.line(f"build: layer {name} ({blob.size_bytes / 1e6:,.0f} MB)")

        self._reporter.status(f"installing wheels into {len(stages)} layers")
        work = self._folder / "made"
        work.mkdir()
        make_layers(
            stages,
            root=root,
            contexts=contexts,
            folder=work,
            memory_bytes=memory_to_unpack(
                groups, at_once=made_at_once(), available_bytes=available_memory_bytes()
            ),
            source_date_epoch=self._epoch,
            engine=self._engine,
            on_layer=on_layer,
        )
