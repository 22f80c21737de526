"""Epoch -> SLSA provenance v1 of its image: from what it was made, by what, when. Unsigned, so no proof.

Source: https://slsa.dev/spec/v1.0/provenance
    https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
"""

from typing import Any

import msgspec

from repro_image.core.bill import Bill
from repro_image.core.canonical import readable_json
from repro_image.core.epoch import STATEMENT_TYPE, Epoch, Manifest

MEDIA_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:repro-image:build:1"
BUILDER_ID = "urn:repro-image:builder:1"


def provenance_json(epoch: Epoch, record: str, bill: Bill, *, manifest: Manifest) -> str:
    """Return the statement; equal epochs make equal bytes.

    record:   digest of the epoch's record.
    manifest: the form of the image that the statement is about, such as the one in a registry.
    """
    return readable_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [
                {
                    "name": f"{epoch.repository}:{epoch.tag}",
                    "digest": _sha256(manifest.digest),
                    "annotations": {"config": epoch.image.config},
                }
            ],
            "predicateType": PREDICATE_TYPE,
            "predicate": {"buildDefinition": _definition(epoch, bill), "runDetails": _run(epoch, record)},
        }
    )


def _definition(epoch: Epoch, bill: Bill) -> dict[str, Any]:
    source = {"source": epoch.source} if epoch.source else {}
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": {"image": epoch.image_name, **source},
        "internalParameters": {"inputs": msgspec.to_builtins(epoch.inputs)},
        "resolvedDependencies": [
            {"name": component.name, "uri": component.purl, "digest": _sha256(component.sha256)}
            for component in bill.components
        ],
    }


def _run(epoch: Epoch, record: str) -> dict[str, Any]:
    return {
        "builder": {"id": BUILDER_ID, "version": {**epoch.builder, "repro-image": epoch.tool}},
        "metadata": {"invocationId": record, "finishedOn": epoch.recorded_at},
    }


def _sha256(digest: str) -> dict[str, str]:
    return {"sha256": digest.removeprefix("sha256:")}
