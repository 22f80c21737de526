"""What packages say of themselves: METADATA of a wheel, control and copyright of a .deb, lists of parts.

All of it comes from strangers: bounded, and only what has the expected form is taken.
"""

import email
import email.policy
import json
import re
from collections.abc import Sequence

import msgspec
from packaging.markers import InvalidMarker, Marker, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from repro_image.core.licenses import License, debian_license, wheel_license

_PURL = re.compile(r"pkg:[a-z0-9.+-]+/[\x21-\x7e]{1,500}")
_MAX_BUNDLED = 5000
_TEXT_LENGTH = 300


class Bundled(msgspec.Struct, frozen=True, kw_only=True):
    """A part that a wheel carries in itself, as its own list (PEP 770) says. purl: None where it has none."""

    name: str
    version: str
    purl: str | None


class PackageMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """requires: names of what it needs; of the alternatives in one tuple the first that is there counts."""

    license: License
    supplier: str | None
    homepage: str | None
    summary: str | None
    requires: tuple[tuple[str, ...], ...]
    provides: tuple[str, ...] = ()
    installed_bytes: int = 0
    bundled: tuple[Bundled, ...] = ()


def parse_wheel_metadata(text: str, *, python: str, boms: Sequence[bytes] = ()) -> PackageMetadata:
    """Return what METADATA says.

    python: version of the image's interpreter, which environment markers are read for.
    boms:   the CycloneDX files below ``.dist-info/sboms``.
    """
    fields = email.message_from_string(text, policy=email.policy.compat32)
    environment = {
        "python_version": ".".join(python.split(".")[:2]),
        "python_full_version": python,
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    links = dict(link.split(", ", 1) for link in _all(fields, "Project-URL") if ", " in link)
    homepage = _one(fields, "Home-page") or next(
        (url for label, url in links.items() if label.lower() in ("homepage", "home")), None
    )
    needed = (_needed(line, environment) for line in _all(fields, "Requires-Dist"))
    return PackageMetadata(
        license=wheel_license(
            fields.get("License-Expression"), fields.get("License"), _all(fields, "Classifier")
        ),
        supplier=_one(fields, "Author") or _one(fields, "Author-email"),
        homepage=_address(homepage),
        summary=_one(fields, "Summary"),
        requires=tuple(sorted({(name,) for name in needed if name})),
        bundled=tuple(part for bom in boms for part in bundled_parts(bom)),
    )


def parse_deb_metadata(control: str, copyright_text: str) -> PackageMetadata:
    """Return what the control and copyright files say."""
    fields = email.message_from_string(control, policy=email.policy.compat32)
    groups = [
        tuple(re.sub(r"[\s(:].*", "", option.strip()) for option in group.split("|"))
        for field in ("Pre-Depends", "Depends")
        for group in (fields.get(field) or "").replace("\n", " ").split(",")
        if group.strip()
    ]
    provides = (re.sub(r"[\s(].*", "", name.strip()) for name in (fields.get("Provides") or "").split(","))
    size = fields.get("Installed-Size") or "0"
    return PackageMetadata(
        license=debian_license(copyright_text),
        supplier=_one(fields, "Maintainer"),
        homepage=_address(_one(fields, "Homepage")),
        summary=_one(fields, "Description"),
        requires=tuple(sorted(set(groups))),
        provides=tuple(sorted(filter(None, provides))),
        installed_bytes=int(size) * 1024 if re.fullmatch(r"[0-9]{1,12}", size) else 0,
    )


def bundled_parts(bom: bytes) -> tuple[Bundled, ...]:
    """Return the parts that a CycloneDX document names; () where it is none."""
    try:
        document = json.loads(bom)
        found = [
            Bundled(name=name[:_TEXT_LENGTH], version=str(entry.get("version", ""))[:100], purl=_purl(entry))
            for entry in document["components"][:_MAX_BUNDLED]
            if isinstance(name := entry.get("name"), str) and name.isprintable()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()
    return tuple(sorted(set(found), key=lambda part: (part.name, part.version, part.purl or "")))


def _purl(entry: dict[str, object]) -> str | None:
    purl = entry.get("purl")
    return purl if isinstance(purl, str) and _PURL.fullmatch(purl) else None


def _needed(line: str, environment: dict[str, str]) -> str | None:
    """Return the name that a Requires-Dist line asks for in this environment; nobody asks for extras here."""
    try:
        requirement = Requirement(line)
        applies = requirement.marker is None or Marker(str(requirement.marker)).evaluate(environment)
    except (InvalidRequirement, InvalidMarker, UndefinedEnvironmentName):
        return None
    return canonicalize_name(requirement.name) if applies else None


def _all(fields: "email.message.Message[str, str]", key: str) -> list[str]:
    return [str(value) for value in fields.get_all(key, [])]


def _one(fields: "email.message.Message[str, str]", key: str) -> str | None:
    """Return the first line of a field, printable and bounded."""
    line = str(fields.get(key) or "").strip().partition("\n")[0].strip()
    return "".join(char for char in line if char.isprintable())[:_TEXT_LENGTH] or None


def _address(text: str | None) -> str | None:
    """Return a web address that is safe to print, or None."""
    return text if text and re.fullmatch(r"https?://[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]{1,300}", text) else None
