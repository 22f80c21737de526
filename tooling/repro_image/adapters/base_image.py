"""An image of a registry as a base: what its packages are, read out of it without running more than `tar`."""

import subprocess
import tarfile
import uuid
from pathlib import Path
from typing import get_args

from repro_image.adapters.debian import InstalledSystem
from repro_image.adapters.engine import Engine
from repro_image.adapters.image_archive import read_documents
from repro_image.adapters.image_blobs import open_engine
from repro_image.adapters.layer_archive import read_headers
from repro_image.core.lockfile import Distribution
from repro_image.errors import EngineMissingError, ImageMissingError, UnsuitableBaseError

_OS_RELEASE, _STATUS, _KEYRINGS = "usr/lib/os-release", "var/lib/dpkg/status", "usr/share/keyrings"
_MEMBER_LIMIT_BYTES = 32 * 2**20
_TIMEOUT_S = 120
# BuildKit mounts on them in every RUN, and leaves those that it had to make, with the time of the build.
_MOUNT_POINTS = ("dev", "proc", "sys")


def read_system(image: str, *, workspace: Path) -> InstalledSystem:
    """Return what is installed in ``image``, which is in the engine's store.

    Raises: UnsuitableBaseError for what is no Debian or Ubuntu with apt and the keys of its archives.
    """
    files = _read_files(image, workspace / "base.tar")
    release = parse_os_release(files.get(_OS_RELEASE, b"").decode(errors="replace"))
    name, suite = release.get("ID", "unknown"), release.get("VERSION_CODENAME", "")
    distribution = next((known for known in get_args(Distribution) if known == name), None)
    if distribution is None or not suite.isalpha():
        raise UnsuitableBaseError(image, reason=f"its os-release says {name!r}, release {suite!r}")
    keyring = files.get(f"{_KEYRINGS}/{distribution}-archive-keyring.gpg")
    status = files.get(_STATUS, b"").decode(errors="replace")
    versions = {package: installed_version(status, package) for package in ("apt", "libc6")}
    lacking = [package for package, version in versions.items() if version is None]
    if lacking or keyring is None:
        reason = f"it lacks {' and '.join(lacking) or 'the keys of its archives'}"
        raise UnsuitableBaseError(image, reason=reason)
    return InstalledSystem(
        distribution=distribution, suite=suite, status=status, keyring=keyring, libc6=str(versions["libc6"])
    )


def require_mount_points(engine: Engine, reference: str) -> None:
    """Raise UnsuitableBaseError unless an image of the engine has the folders that every RUN needs.

    Layers are read from the bottom until they are found, which the first one of most images has.
    """
    image = engine.image(reference)
    if image is None:
        raise ImageMissingError(reference)
    blobs = open_engine(engine, image, name=reference)
    documents = read_documents(blobs)
    stored = (layer.digest for layer in documents.manifest.layers)
    diff_ids = dict(zip(stored, documents.diff_ids, strict=True))
    missing = set(_MOUNT_POINTS)
    for digest, stream in blobs.streams(diff_ids):
        missing -= read_headers(stream, diff_id=diff_ids[digest], image=reference).entries.keys()
        if not missing:
            return
    told = ", ".join(f"/{folder}" for folder in sorted(missing))
    raise UnsuitableBaseError(reference, reason=f"it lacks {told}, which each build makes with its own time")


def parse_os_release(text: str) -> dict[str, str]:
    """Return the variables of an os-release file, os-release(5)."""
    values = {}
    for line in text.splitlines():
        key, found, value = line.partition("=")
        if found and not key.startswith("#"):
            values[key.strip()] = value.strip().strip("\"'")
    return values


def installed_version(status: str, package: str) -> str | None:
    """Return the version of ``package`` that a dpkg status file says is installed."""
    for stanza in status.split("\n\n"):
        lines = stanza.strip("\n").splitlines()
        if f"Package: {package}" in lines and "Status: install ok installed" in lines:
            return next(
                (line.removeprefix("Version: ") for line in lines if line.startswith("Version: ")), None
            )
    return None


def _read_files(image: str, archive: Path) -> dict[str, bytes]:
    """Return path -> content of the files that ``read_system`` looks at, links followed inside the image."""
    name = f"repro-image-{uuid.uuid4().hex[:12]}"
    command = ["docker", "run", "--rm", "--pull", "never", "--name", name, "--network", "none", "--read-only"]
    command += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--log-driver", "none"]
    command += ["--user", "0:0", "--entrypoint", "tar", image, "--create", "--dereference", "--file=-"]
    command += ["--directory=/", _OS_RELEASE, _STATUS, _KEYRINGS]
    try:
        with archive.open("wb") as file:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.PIPE,
                check=False,
                timeout=_TIMEOUT_S,
            )
    except subprocess.TimeoutExpired as error:
        subprocess.run(["docker", "kill", name], capture_output=True, check=False, timeout=_TIMEOUT_S)
        raise UnsuitableBaseError(image, reason=f"`tar` in it did not end within {_TIMEOUT_S} s") from error
    except FileNotFoundError as error:
        raise EngineMissingError("the program `docker` is not on PATH") from error
    try:
        with tarfile.open(archive) as tar:
            members = [one for one in tar if one.isreg() and one.size <= _MEMBER_LIMIT_BYTES]
            return {one.name: found.read() for one in members if (found := tar.extractfile(one)) is not None}
    except tarfile.TarError as error:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["it has no files"])[-1]
        raise UnsuitableBaseError(image, reason=f"its files cannot be listed: {last}") from error
