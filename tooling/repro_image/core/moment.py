"""Times as records and documents write them."""

from datetime import UTC, datetime


def timestamp_of(seconds: int) -> str:
    """Return seconds since 1970 as UTC in whole seconds, such as ``2026-11-21T22:30:00Z``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
