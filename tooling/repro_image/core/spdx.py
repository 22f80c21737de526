"""Bill -> SPDX 2.3 JSON.

Source: https://spdx.github.io/spdx-spec/v2.3/
"""

import re
from collections.abc import Iterator
from typing import Any

from repro_image.core.bill import Bill, Component
from repro_image.core.canonical import readable_json
from repro_image.core.cyclonedx import document_id
from repro_image.core.moment import timestamp_of
from repro_image.core.package_metadata import Bundled
from repro_image.core.reference import sha256_digest

MEDIA_TYPE = "application/spdx+json"
_IMAGE = "SPDXRef-image"
_NOTHING_SAID = "NOASSERTION"


def spdx_json(bill: Bill, *, version: str) -> str:
    """Return the document; equal bills make equal bytes. version: of repro-image."""
    image = {
        "SPDXID": _IMAGE,
        "name": bill.name,
        "versionInfo": bill.locks,
        "primaryPackagePurpose": "CONTAINER",
        **_unlicensed(),
    }
    bundled = {
        _reference(component.purl, part): part for component in bill.components for part in component.bundled
    }
    return readable_json(
        {
            "spdxVersion": "SPDX-2.3",
            "dataLicense": "CC0-1.0",
            "SPDXID": "SPDXRef-DOCUMENT",
            "name": bill.name,
            "documentNamespace": f"urn:uuid:{document_id(bill)}",
            "creationInfo": {
                "created": timestamp_of(bill.created),
                "creators": [f"Tool: repro-image-{version}"],
            },
            "packages": [
                image,
                *map(_package, bill.components),
                *(_bundled(reference, part) for reference, part in sorted(bundled.items())),
            ],
            "relationships": [
                {"spdxElementId": a, "relationshipType": kind, "relatedSpdxElement": b}
                for a, kind, b in _relationships(bill)
            ],
        }
    )


def _relationships(bill: Bill) -> Iterator[tuple[str, str, str]]:
    yield "SPDXRef-DOCUMENT", "DESCRIBES", _IMAGE
    made_of = {component.made_of for component in bill.components}
    for component in bill.components:
        own = _reference(component.purl)
        if component.purl not in made_of:
            yield _IMAGE, "CONTAINS", own
        for purl in component.requires:
            yield own, "DEPENDS_ON", _reference(purl)
        for part in component.bundled:
            yield own, "CONTAINS", _reference(component.purl, part)
        if component.made_of:
            yield own, "GENERATED_FROM", _reference(component.made_of)


def _package(component: Component) -> dict[str, Any]:
    written: dict[str, Any] = {
        "SPDXID": _reference(component.purl),
        "name": component.name,
        "versionInfo": component.version,
        "checksums": [{"algorithm": "SHA256", "checksumValue": component.sha256.removeprefix("sha256:")}],
        "externalRefs": [_package_url(component.purl)],
        **_unlicensed(),
    }
    if component.license.expression:
        written["licenseDeclared"] = component.license.expression
    elif component.license.names:
        written["licenseComments"] = f"in its own words: {'; '.join(component.license.names)}"
    if component.supplier:
        written["originator"] = f"Organization: {component.supplier}"
    if component.homepage:
        written["homepage"] = component.homepage
    if component.summary:
        written["summary"] = component.summary
    return written


def _bundled(reference: str, part: Bundled) -> dict[str, Any]:
    links = {"externalRefs": [_package_url(part.purl)]} if part.purl else {}
    return {"SPDXID": reference, "name": part.name, "versionInfo": part.version, **_unlicensed(), **links}


def _unlicensed() -> dict[str, Any]:
    """Return the fields of a package whose files were not looked at and whose licence is not known."""
    return {
        "downloadLocation": _NOTHING_SAID,
        "filesAnalyzed": False,
        "licenseConcluded": _NOTHING_SAID,
        "licenseDeclared": _NOTHING_SAID,
        "copyrightText": _NOTHING_SAID,
    }


def _package_url(purl: str) -> dict[str, str]:
    return {
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": purl,
    }


def _reference(purl: str, part: Bundled | None = None) -> str:
    """Return an identifier: readable, and unique by a digest of what it stands for."""
    whole = purl if part is None else f"{purl}\n{part.name}\n{part.version}\n{part.purl}"
    readable = re.sub(r"[^A-Za-z0-9]+", "-", part.name if part else purl.partition("@")[0])[:60].strip("-")
    return f"SPDXRef-{readable}-{sha256_digest(whole.encode())[7:19]}"
