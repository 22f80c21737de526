"""Times as records and documents write them."""

from datetime import UTC, datetime


def timestamp(moment: datetime) -> str:
    """Return ``moment`` as UTC in whole seconds, such as ``2026-11-21T22:30:00Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def timestamp_of(seconds: int) -> str:
    """Return seconds since 1970 in the same form."""
    return timestamp(datetime.fromtimestamp(seconds, UTC))
