"""Bill: what an image is made of, from its locks and its packages' own words; nothing is scanned."""

import re
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from repro_image.core.canonical import canonical_digest
from repro_image.core.licenses import License, wheel_license
from repro_image.core.lockfile import BaseLock, GgufLock, LockedDeb, LockedWheel, Locks
from repro_image.core.package_metadata import Bundled, PackageMetadata


class Kind(StrEnum):
    BASE = "base"
    DEBIAN = "debian"
    PYTHON = "python"
    MODEL = "model"


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that an image, or its golden run, is made of.

    sha256:   of the package file as it was locked; of a model's folder, its digest.
    purl:     package URL, https://github.com/package-url/purl-spec; unique in a bill.
    requires: purls of other components of the bill.
    made_of:  purl of the package that a model was taken out of.
    """

    kind: Kind
    name: str
    version: str
    sha256: str
    purl: str
    license: License
    supplier: str | None = None
    homepage: str | None = None
    summary: str | None = None
    requires: tuple[str, ...] = ()
    bundled: tuple[Bundled, ...] = ()
    made_of: str | None = None


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """What the image ``name`` is made of by its locks.

    locks:       digest of all locks together, which the document's own identity follows from.
    created:     seconds; SOURCE_DATE_EPOCH of the locks, so that equal locks make equal documents.
    components:  sorted by purl.
    is_complete: False where a base brings packages that no lock names.
    """

    name: str
    locks: str
    created: int
    components: tuple[Component, ...]
    is_complete: bool


def make_bill(name: str, locks: Locks, metadata: Mapping[str, PackageMetadata]) -> Bill:
    """Return the bill of ``locks``. metadata: by sha256, of every locked wheel and .deb."""
    base = locks.base
    release = None if isinstance(base, BaseLock) else base.suite
    vendor = base.distribution if isinstance(base, BaseLock) else "debian"
    wheels = {wheel.name: _wheel_purl(wheel) for wheel in locks.requirements.wheels}
    debs = {deb.name: _deb_purl(deb, vendor, release) for deb in base.packages}
    providers = {
        virtual: debs[deb.name] for deb in base.packages for virtual in metadata[deb.sha256].provides
    } | debs
    components = [
        *(
            _package(Kind.PYTHON, wheel, wheels[wheel.name], metadata[wheel.sha256], wheels)
            for wheel in locks.requirements.wheels
        ),
        *(
            _package(Kind.DEBIAN, deb, debs[deb.name], metadata[deb.sha256], providers)
            for deb in base.packages
        ),
        *_model(locks),
    ]
    if isinstance(base, BaseLock):
        components.append(_base(base))
    return Bill(
        name=name,
        locks=canonical_digest(locks),
        created=base.source_date_epoch,
        components=tuple(sorted(components, key=lambda component: component.purl)),
        is_complete=not isinstance(base, BaseLock),
    )


def _package(
    kind: Kind,
    locked: LockedWheel | LockedDeb,
    purl: str,
    metadata: PackageMetadata,
    purls: Mapping[str, str],
) -> Component:
    needed = (next((purls[name] for name in group if name in purls), None) for group in metadata.requires)
    return Component(
        kind=kind,
        name=locked.name,
        version=locked.version,
        sha256=locked.sha256,
        purl=purl,
        license=metadata.license,
        supplier=metadata.supplier,
        homepage=metadata.homepage,
        summary=metadata.summary,
        requires=tuple(sorted({found for found in needed if found and found != purl})),
        bundled=metadata.bundled,
    )


def _model(locks: Locks) -> list[Component]:
    """Return the model, and where a package ships it that package, which is no part of the image."""
    model = locks.model
    if not isinstance(model, GgufLock):
        namespace, _, name = model.repository.rpartition("/")
        path = f"{_encoded(namespace)}/{_encoded(name)}" if namespace else _encoded(name)
        return [
            Component(
                kind=Kind.MODEL,
                name=model.repository,
                version=model.commit,
                sha256=model.digest,
                purl=f"pkg:huggingface/{path}@{model.commit}",
                license=wheel_license(model.license, model.license, ()),
            )
        ]
    source = _wheel_purl(model.source)
    shipped = Component(
        kind=Kind.MODEL,
        name=model.name,
        version=model.source.version,
        sha256=model.digest,
        purl=f"pkg:generic/{_encoded(model.name)}@{_encoded(model.source.version)}",
        license=wheel_license(model.license, model.license, ()),
        made_of=source,
    )
    package = Component(
        kind=Kind.PYTHON,
        name=model.source.name,
        version=model.source.version,
        sha256=model.source.sha256,
        purl=source,
        license=License(),
    )
    return [shipped, package]


def _base(base: BaseLock) -> Component:
    repository, _, tag = base.reference.rpartition(":")
    name = repository.rpartition("/")[2]
    place = f"?repository_url={_encoded(repository)}&tag={_encoded(tag)}"
    return Component(
        kind=Kind.BASE,
        name=repository,
        version=tag,
        sha256=base.manifest,
        purl=f"pkg:oci/{_encoded(name)}@{_encoded(base.manifest)}{place}",
        license=License(),
    )


def _wheel_purl(wheel: LockedWheel) -> str:
    return f"pkg:pypi/{_encoded(wheel.name)}@{_encoded(wheel.version)}"


def _deb_purl(deb: LockedDeb, vendor: str, release: str | None) -> str:
    distro = f"&distro={release}" if release else ""
    return f"pkg:deb/{vendor}/{_encoded(deb.name)}@{_encoded(deb.version)}?arch={deb.architecture}{distro}"


def _encoded(text: str) -> str:
    """Return ``text`` as a part of a package URL, where colons stay as they are."""
    return re.sub(r"[^A-Za-z0-9:._~-]", lambda char: "".join(f"%{n:02X}" for n in char[0].encode()), text)
