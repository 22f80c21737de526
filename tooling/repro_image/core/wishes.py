"""What people write into requirements/<image>.in, and what a resolver answers: text -> names and versions.

Both are read by an allow-list grammar: pip would obey ``--index-url`` or ``-e`` from either.
"""

import re

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from repro_image.errors import InvalidFileError, ResolverOutputError

_COMMENT = re.compile(r"(?:^|\s+)#.*")
_PIN = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[0-9][A-Za-z0-9.+!_-]*)(?:\s*;.*)?"
)


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """One requirement. text: as a resolver gets it, without comment; name: canonical."""

    name: str
    text: str

    @property
    def specifier(self) -> SpecifierSet:
        return Requirement(self.text).specifier


def parse_wishes(text: str, *, path: str) -> tuple[Wish, ...]:
    """Return the requirements of an .in file, in its order.

    Raises: InvalidFileError with the line, for anything but ``name[extras] specifier ; marker`` and comments.
    """
    wishes = []
    for number, line in enumerate(text.splitlines(), start=1):
        wanted = _COMMENT.sub("", line).strip()
        if wanted:
            wishes.append(_parse_wish(wanted, path=path, number=number))
    if not wishes:
        raise InvalidFileError("the file asks for nothing", path=path, fix="write one requirement a line")
    return tuple(wishes)


def parse_pins(text: str, *, resolver: str, path: str) -> dict[str, str]:
    """Return name -> version of a resolver's output. Raises: ResolverOutputError with the line."""
    pins: dict[str, str] = {}
    for line in text.splitlines():
        wanted = _COMMENT.sub("", line).strip()
        if not wanted:
            continue
        match = _PIN.fullmatch(wanted)
        name = canonicalize_name(match["name"]) if match else ""
        if match is None or name in pins:
            raise ResolverOutputError(resolver, line=line, requirements=path)
        pins[name] = match["version"]
    return pins


def _parse_wish(wanted: str, *, path: str, number: int) -> Wish:
    fix = "write names with version specifiers; addresses belong into pip.conf or [tool.repro-image.indexes]"
    if wanted.startswith("-"):
        raise InvalidFileError(
            f"line {number}: the option {wanted.split()[0]!r} is refused", path=path, fix=fix
        )
    try:
        requirement = Requirement(wanted)
    except InvalidRequirement as error:
        raise InvalidFileError(
            f"line {number} is no requirement: {wanted[:100]!r}", path=path, fix=fix
        ) from error
    if requirement.url is not None:
        raise InvalidFileError(f"line {number}: a requirement by address is refused", path=path, fix=fix)
    return Wish(name=canonicalize_name(requirement.name), text=str(requirement))
