"""Debian packages that are unpacked for a test, not installed, and a locale made of one."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

TURKISH = "tr_TR.UTF-8"  # its upper case of "i" is no "I"


def unpack(packages: Sequence[str], suite: str, *, folder: Path) -> Path:
    """Return a root that holds the files of ``packages``; folder: empty, for that and for what apt needs."""
    apt, root = folder / "apt", folder / "root"
    for name in ("lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "sources.list").write_text(f"deb [arch=amd64 signed-by={keyring}] {_mirror()} {suite} main\n")
    places = {
        "Etc::sourcelist": "sources.list",
        "State": ".",
        "State::status": "status",
        "State::lists": "lists",
        "Cache": "cache",
    }
    options = [part for key, name in places.items() for part in ("-o", f"Dir::{key}={apt / name}")]
    options += ["-o", "Dir::Etc::sourceparts=/dev/null", "-o", "Dir::Etc::preferencesparts=/dev/null"]
    for arguments in (["update"], ["download", *packages]):
        command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", *options, *arguments]
        subprocess.run(command, check=True, cwd=apt, capture_output=True)
    for package in sorted(apt.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    return root


def _mirror() -> str:
    form = "$(CREATED_BY) $(COMPONENT) $(CODENAME) $(SITE)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", form], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.split() for line in listed.splitlines())
    return next(row[3] for row in rows if row[:3] == ["Packages", "main", "bookworm"])


def turkish(folder: Path) -> Mapping[str, str]:
    """Return variables under which every program of this machine works in Turkish, and another time zone."""
    sources = unpack(["locales"], "bookworm", folder=folder) / "usr/share/i18n"
    compiled = folder / "locales"
    compiled.mkdir()
    command = ["localedef", "--inputfile", "tr_TR", "--charmap", "UTF-8", str(compiled / TURKISH)]
    subprocess.run(
        command, check=True, capture_output=True, env={**os.environ, "I18NPATH": str(sources), "LC_ALL": "C"}
    )
    made = {"LOCPATH": str(compiled), "LANG": TURKISH, "LC_ALL": TURKISH, "TZ": "Asia/Kathmandu"}
    told = subprocess.run(
        ["date", "--date=2026-01-01", "+%B"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **made},
    )
    assert told.stdout == "Ocak\n"
    return made
