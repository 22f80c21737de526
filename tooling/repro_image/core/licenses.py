"""What a package says of its licence -> License; nothing is guessed that the package does not say."""

import re
from collections.abc import Sequence

import msgspec
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

_NAME_LENGTH = 100

# Classifiers that mean one licence of the SPDX list; "BSD License" or "Apache" without a version are several.
_CLASSIFIERS = {
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}

# Words of License fields that can mean one licence only.
_SAID = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "isc license": "ISC",
    "mit license": "MIT",
}

# Debian's short names that mean one licence of the SPDX list; a `+` at the end is "or later".
# Source: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/#license-specification
_DEBIAN = {
    "apache-2.0": "Apache-2.0",
    "artistic-2.0": "Artistic-2.0",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-4-clause": "BSD-4-Clause",
    "cc0-1.0": "CC0-1.0",
    "expat": "MIT",
    "isc": "ISC",
    "mpl-2.0": "MPL-2.0",
    "zlib": "Zlib",
}
_GNU = re.compile(r"(?P<name>[AL]?GPL|GFDL)-(?P<version>[0-9](?:\.[0-9])?)(?P<later>\+)?", re.IGNORECASE)


class License(msgspec.Struct, frozen=True, kw_only=True):
    """expression: of SPDX identifiers; names: where it says none, its own words."""

    expression: str | None = None
    names: tuple[str, ...] = ()


def wheel_license(expression: str | None, text: str | None, classifiers: Sequence[str]) -> License:
    """Return the licence of a wheel by its METADATA.

    License-Expression counts first (PEP 639), then License where it is an SPDX expression, then the
    classifiers, then the first line of License as a name.
    """
    for candidate in (expression, text):
        said = (candidate or "").strip()
        spdx = _SAID.get(said.lower()) or _expression(said)
        if spdx:
            return License(expression=spdx)
    leaves = sorted({line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License :: ")})
    known = [_CLASSIFIERS.get(leaf) for leaf in leaves]
    if len(known) == 1 and known[0]:
        return License(expression=known[0])
    first = (text or "").strip().partition("\n")[0].strip()
    is_name = first and len(first) <= _NAME_LENGTH and not first.lower().startswith("copyright")
    if is_name and len(leaves) < 2:
        return License(names=(first,))  # it says more than a classifier such as "BSD License"
    return License(names=tuple(leaf for leaf in leaves if leaf != "OSI Approved"))


def debian_license(copyright_text: str) -> License:
    """Return the licences of a Debian package by its machine-readable copyright file.

    Every licence of the file applies to some part of the package, so they are joined with AND. A file in
    another form says nothing that can be read without guessing.
    """
    if not re.match(r"Format(?:-Specification)?:\s*\S*copyright-format", copyright_text):
        return License()
    names = []
    for paragraph in re.split(r"\n\s*\n", copyright_text):
        if re.search(r"^Files:", paragraph, re.MULTILINE):
            found = re.search(r"^License:[ \t]*(\S[^\n]*)$", paragraph, re.MULTILINE)
            names += [found.group(1).strip()[:_NAME_LENGTH]] if found else []
    unique = sorted(set(names))
    parts = [_debian_expression(name) for name in unique]
    if unique and all(parts):
        wrapped = [f"({part})" if " OR " in part else part for part in sorted(set(filter(None, parts)))]
        return License(expression=_expression(" AND ".join(wrapped)))
    return License(names=tuple(unique))


def _debian_expression(name: str) -> str | None:
    """Return what `GPL-2+ or Expat` says in SPDX identifiers, or None where a part has none."""
    words = re.split(r"\s+(and|or)\s+", name.replace(",", ""))
    parts = [_debian_id(word) if index % 2 == 0 else word.upper() for index, word in enumerate(words)]
    # Without brackets "a or b and c" would need a rule of precedence that both sides share.
    mixed = len({part for part in parts if part in ("AND", "OR")}) > 1
    return None if mixed or None in parts else " ".join(filter(None, parts))


def _debian_id(word: str) -> str | None:
    gnu = _GNU.fullmatch(word)
    if gnu:
        version = gnu["version"] if "." in gnu["version"] else f"{gnu['version']}.0"
        return _expression(f"{gnu['name'].upper()}-{version}-{'or-later' if gnu['later'] else 'only'}")
    return _DEBIAN.get(word.lower())


def _expression(text: str) -> str | None:
    """Return ``text`` in its canonical spelling where it is an SPDX expression, else None."""
    if "\n" in text or not text.strip():
        return None
    try:
        return canonicalize_license_expression(text.strip())
    except InvalidLicenseExpression:
        return None
