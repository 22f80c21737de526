"""Finding: one rule, applied; and the little that all rules share."""

from collections.abc import Iterable
from enum import StrEnum

import msgspec

_NAMES_SHOWN = 3


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule, applied.

    rule:   key in image.toml, or what was looked at in the locks or on the machine.
    source: file that the rule comes from, or where its table was read.
    fix:    what to do; empty when the rule is met.
    """

    rule: str
    found: str
    needed: str
    level: Level
    source: str
    fix: str = ""


def make_finding(rule: str, *, found: str, needed: str, level: Level, source: str, fix: str) -> Finding:
    """Return the finding, without a fix where the rule is met."""
    fix = "" if level is Level.OK else fix
    return Finding(rule=rule, found=found, needed=needed, level=level, source=source, fix=fix)


def level_of(*, is_known: bool, is_met: bool) -> Level:
    """Known-bad is an error, unknown a warning."""
    if not is_known:
        return Level.WARNING
    return Level.OK if is_met else Level.ERROR


def errors_of(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(finding for finding in findings if finding.level is Level.ERROR)


def strictly(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return ``findings`` with each warning as an error."""
    return tuple(
        msgspec.structs.replace(finding, level=Level.ERROR) if finding.level is Level.WARNING else finding
        for finding in findings
    )


def few(names: Iterable[str]) -> str:
    """Return the first three of ``names``, sorted, and how many more there are."""
    listed = sorted(names)
    more = len(listed) - _NAMES_SHOWN
    return ", ".join(listed[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
