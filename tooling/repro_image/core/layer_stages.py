"""The stages of a rendered Dockerfile that install wheels, read back as what to run.

What is read is the recipe itself, so that layers made without BuildKit are what the Dockerfile says. A
Dockerfile of another shape is no error: BuildKit then does it all.
"""

import re
from collections.abc import Iterable

import msgspec

from repro_image.core.canonical import canonical_digest
from repro_image.core.layers import LayerGroup
from repro_image.core.lockfile import BaseLock, DebianLock

PACKAGES = "packages"
# Raised when the tool writes other layers from the same commands, so that kept ones are not taken for them.
_WRITER = 1


class LayerStage(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of the stage ``packages``.

    script:  what the shell runs; its files are below /out/<name>/<source_date_epoch> then.
    step:    the COPY that makes the layer, as BuildKit's history has it.
    """

    name: str
    script: str
    step: str

    def key(self, group: LayerGroup, *, installer: str, python: str, source_date_epoch: int) -> str:
        """Return the digest of all that the layer's bytes follow from.

        installer: digest of the installer's wheel. python: of the interpreter that compiles bytecode.
        """
        return canonical_digest(
            {
                "writer": _WRITER,
                "script": self.script,
                "wheels": group.requirements,
                "installer": installer,
                "python": python,
                "source_date_epoch": source_date_epoch,
            }
        )


class _Stage(msgspec.Struct, frozen=True):
    base: str
    instructions: tuple[str, ...]


def layer_stages(
    dockerfile: str, names: Iterable[str], *, source_date_epoch: int
) -> tuple[LayerStage, ...] | None:
    """Return the layers of the stage ``packages``, bottom first; None where a stage has another shape.

    names: of the groups that there have to be, bottom first.
    """
    stages = _stages(dockerfile)
    folders = {name: f"/out/{name}/{source_date_epoch}/" for name in names}
    found = tuple(_layer_stage(stages.get(name), name, folder) for name, folder in folders.items())
    layers = tuple(layer for layer in found if layer is not None)
    wanted = _Stage("root", tuple(f"COPY --link --from={one.name} {folders[one.name]} /" for one in layers))
    return layers if len(layers) == len(found) and stages.get(PACKAGES) == wanted else None


def root_is_base(dockerfile: str) -> bool:
    """Return whether the stage ``root`` is the build context ``base`` and nothing else."""
    return _stages(dockerfile).get("root") == _Stage("base", ())


def python_digest(base: DebianLock | BaseLock) -> str:
    """Return a digest that changes with the interpreter that compiles bytecode.

    Of a Debian root these are its packages, so that layers outlive an update of another package; of another
    base it is the whole of it.
    """
    if isinstance(base, DebianLock):
        return canonical_digest(sorted(deb.sha256 for deb in base.packages if "python3" in deb.name))
    return base.root


def _layer_stage(stage: _Stage | None, name: str, folder: str) -> LayerStage | None:
    if stage is None or stage.base != "root" or len(stage.instructions) != 2:
        return None
    first, run = stage.instructions
    options = (
        "RUN --network=none",
        "--mount=type=bind,from=tools,target=/tools",
        f"--mount=type=bind,from=wheels,source={name},target=/wheels/{name}",
        f"--mount=type=bind,from=locks,source={name}.txt,target=/locks/{name}.txt",
    )
    # What begins like this is a further option, a here-document or a command without a shell.
    found = re.fullmatch(r"\s+".join(map(re.escape, options)) + r"\s+([^-<\[\s].*)", run)
    if first != "ARG SOURCE_DATE_EPOCH" or found is None:
        return None
    return LayerStage(name=name, script=found[1], step=f"COPY {folder} / # buildkit")


def _stages(dockerfile: str) -> dict[str, _Stage]:
    """Return the named stages. A name that is given twice is left out."""
    parts = re.split(r"^FROM ", _joined(dockerfile), flags=re.MULTILINE)[1:]
    stages: dict[str, _Stage] = {}
    seen: set[str] = set()
    for part in parts:
        first, *instructions = part.splitlines()
        base, _, name = first.partition(" AS ")
        if name in seen:
            stages.pop(name, None)
        elif name:
            stages[name] = _Stage(base, tuple(instructions))
        seen.add(name)
    return stages


def _joined(dockerfile: str) -> str:
    """Return the instructions, one a line, joined as Docker joins them: comments and empty lines left out."""
    lines = [line.rstrip() for line in dockerfile.splitlines()]
    text = "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))
    return text.replace("\\\n", "")
