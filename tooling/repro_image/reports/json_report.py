"""Comparison -> one JSON document; its schema is data/verify.schema.json."""

import json
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from repro_image.core.comparison import Comparison, Reason, Verdict


class VerifyDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `verify --json` prints and `--report FILE.json` writes.

    context: what was verified, such as tag, image and class; for readers.
    """

    format: Literal[1] = 1
    verdict: Verdict
    reason: Reason | None
    exit_code: int
    detail: str
    context: dict[str, str]
    comparison: Comparison


def json_document(comparison: Comparison, *, context: Mapping[str, str]) -> VerifyDocument:
    return VerifyDocument(
        verdict=comparison.verdict,
        reason=comparison.reason,
        exit_code=comparison.exit_code,
        detail=comparison.detail,
        context=dict(context),
        comparison=comparison,
    )


def json_report(comparison: Comparison, *, context: Mapping[str, str]) -> str:
    """Return the document as ``sorted_json``."""
    return sorted_json(json_document(comparison, context=context))


def sorted_json(document: msgspec.Struct) -> str:
    """Return ``document`` as sorted JSON, ASCII only, safe inside HTML too; ends in a newline."""
    plain = msgspec.to_builtins(document, str_keys=True)
    text = json.dumps(plain, sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False)
    for char in "<>&":  # they occur inside strings only
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.replace("\x7f", "\\u007f") + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the document."""
    return schema_of(VerifyDocument, title="repro-image verify")


def schema_of(document: type[msgspec.Struct], *, title: str) -> dict[str, Any]:
    """Return the JSON Schema of ``document``, without the docstrings that it was derived from."""
    schema = msgspec.json.schema(document)
    for definition in schema["$defs"].values():
        definition.pop("description", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **schema,
    }
