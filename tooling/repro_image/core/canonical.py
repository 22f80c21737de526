"""One way to write JSON, so that equal values have equal bytes and equal digests."""

import json
from typing import Any

import msgspec

from repro_image.core.reference import sha256_digest


def canonical_json(value: Any) -> bytes:
    """Return ``value`` as compact JSON: sorted keys, UTF-8, no NaN. Structs are written as their fields."""
    plain = msgspec.to_builtins(value, str_keys=True)
    return json.dumps(
        plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def readable_json(value: Any) -> str:
    """Return ``value`` as sorted JSON that people can read and git can diff; ends in a newline."""
    plain = msgspec.to_builtins(value, str_keys=True)
    return json.dumps(plain, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def canonical_digest(value: Any) -> str:
    """Return ``sha256:<hex>`` of the canonical JSON of ``value``."""
    return sha256_digest(canonical_json(value))
