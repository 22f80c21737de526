"""Bill -> CycloneDX 1.6 JSON.

Source: https://cyclonedx.org/docs/1.6/json/
"""

from typing import Any

from repro_image.core.bill import Bill, Component, Kind
from repro_image.core.canonical import readable_json
from repro_image.core.licenses import License
from repro_image.core.moment import timestamp_of

MEDIA_TYPE = "application/vnd.cyclonedx+json"
_TYPES = {
    Kind.BASE: "container",
    Kind.DEBIAN: "library",
    Kind.PYTHON: "library",
    Kind.MODEL: "machine-learning-model",
}


def cyclonedx_json(bill: Bill, *, version: str) -> str:
    """Return the document; equal bills make equal bytes. version: of repro-image."""
    root = f"image:{bill.name}"
    made_of = {component.made_of for component in bill.components if component.made_of}
    parts = [component for component in bill.components if component.purl not in made_of]
    sources = {component.purl: component for component in bill.components if component.purl in made_of}
    return readable_json(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": f"urn:uuid:{document_id(bill)}",
            "version": 1,
            "metadata": {
                "timestamp": timestamp_of(bill.created),
                "tools": {"components": [{"type": "application", "name": "repro-image", "version": version}]},
                "component": {
                    "type": "container",
                    "name": bill.name,
                    "version": bill.locks,
                    "bom-ref": root,
                },
            },
            "components": [_component(part, sources) for part in parts],
            "dependencies": [
                {"ref": root, "dependsOn": sorted(part.purl for part in parts)},
                *({"ref": part.purl, "dependsOn": list(part.requires)} for part in parts),
            ],
            "compositions": [
                {
                    "aggregate": "complete" if bill.is_complete else "incomplete_first_party_only",
                    "assemblies": [root],
                }
            ],
        }
    )


def document_id(bill: Bill) -> str:
    """Return a UUID of version 8 (RFC 9562) that follows from the locks alone."""
    digits = bill.locks.removeprefix("sha256:")
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-8{digits[17:20]}-{digits[20:32]}"


def _component(component: Component, sources: dict[str, Component]) -> dict[str, Any]:
    written: dict[str, Any] = {
        "type": _TYPES[component.kind],
        "bom-ref": component.purl,
        "name": component.name,
        "version": component.version,
        "purl": component.purl,
        "hashes": [{"alg": "SHA-256", "content": component.sha256.removeprefix("sha256:")}],
    }
    if component.summary:
        written["description"] = component.summary
    if component.supplier:
        written["supplier"] = {"name": component.supplier}
    if component.homepage:
        written["externalReferences"] = [{"type": "website", "url": component.homepage}]
    licenses = _licenses(component.license)
    if licenses:
        written["licenses"] = licenses
    if component.bundled:
        written["components"] = [
            {"type": "library", "name": part.name, "version": part.version}
            | ({"purl": part.purl} if part.purl else {})
            for part in component.bundled
        ]
    if component.made_of:
        source = sources[component.made_of]
        written["pedigree"] = {"ancestors": [_component(source, sources)]}
    return written


def _licenses(license_: License) -> list[dict[str, Any]]:
    if license_.expression:
        return [{"expression": license_.expression}]
    return [{"license": {"name": name}} for name in license_.names]
