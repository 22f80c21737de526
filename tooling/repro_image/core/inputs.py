"""What each lock and each image was made from, as digests: equal means nothing changed."""

import msgspec

from repro_image.core.canonical import canonical_digest
from repro_image.core.lockfile import Locks
from repro_image.core.project import Base, GgufModel, HubModel, ImageSpec, PythonSpec, RegistryBase
from repro_image.core.reference import Digest, sha256_digest

# Raised when the tool makes another root from the same packages, so that old locks are seen to be stale.
ROOT_RECIPE = 1


def base_inputs(base: Base) -> str:
    """Return the digest of what debian.json or base.json is made from; reasons may be reworded freely."""
    if isinstance(base, RegistryBase):
        return canonical_digest({"reference": base.reference, "packages": sorted(base.packages)})
    return canonical_digest({"recipe": ROOT_RECIPE, "suite": base.suite, "packages": sorted(base.packages)})


def requirements_inputs(requirements: str, python: PythonSpec, *, resolver: str, root: str) -> str:
    """Return the digest of what requirements.txt is made from.

    requirements: text of requirements/<image>.in; comments and blank lines do not count.
    resolver:     its name, without the version: a newer resolver alone makes no lock stale.
    root:         digest of the root file system.
    """
    wishes = sorted(line.partition(" #")[0].strip() for line in requirements.splitlines())
    return canonical_digest(
        {
            "requirements": [line for line in wishes if line and not line.startswith("#")],
            "python": python.version,
            "excluded": sorted(python.excluded),
            "sources": python.sources,
            "resolver": resolver,
            "root": root,
        }
    )


def model_inputs(model: GgufModel | HubModel, *, converter: str) -> str:
    """Return the digest of what model.json is made from; converter: of GGUF files, no other is converted."""
    fields = {"model": msgspec.to_builtins(model)}
    return canonical_digest({**fields, "converter": converter} if isinstance(model, GgufModel) else fields)


class BuildInputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The digest of each thing that an image and its golden are made from. ``digest`` binds them all.

    debian: of the base's lock, of either kind.
    """

    debian: Digest
    requirements: Digest
    model: Digest
    dockerfile: Digest
    settings: Digest
    suite: Digest
    runner: Digest

    @property
    def digest(self) -> str:
        return canonical_digest(self)


def build_inputs(
    image: ImageSpec, locks: Locks, *, dockerfile: str, suite: str, runner: bytes
) -> BuildInputs:
    """Return the digests of everything that ``build`` reads; file paths, times and reasons are not among
    them.

    suite: digest of the golden request.
    """
    return BuildInputs(
        debian=canonical_digest(locks.base),
        requirements=canonical_digest(locks.requirements),
        model=canonical_digest(locks.model),
        dockerfile=sha256_digest(dockerfile.encode()),
        settings=canonical_digest({"platform": image.platform, "golden": msgspec.to_builtins(image.golden)}),
        suite=suite,
        runner=sha256_digest(runner),
    )
