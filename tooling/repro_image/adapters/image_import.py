"""Blobs of an image into the engine's store, by the name and digest that they have in their registry."""

import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from repro_image.core.oci import INDEXES, Descriptor
from repro_image.errors import EngineCallError, EngineMissingError

_NAME = "io.containerd.image.name"  # what containerd reads a loaded image's name from


def load_image(name: str, manifest: Descriptor, blobs: Mapping[str, Path]) -> None:
    """Let the engine take up an image as `docker load` does.

    name:  registry, repository and tag.
    blobs: digest -> file, of the manifest and of all that it names.
    Raises: EngineCallError, EngineMissingError.
    """
    described = {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": manifest.size,
        "annotations": {_NAME: name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]},
    }
    index = {"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": [described]}
    command = ["docker", "load", "--quiet"]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise EngineMissingError("the program `docker` is not on PATH") from error
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    assert process.stderr is not None  # noqa: S101 - it is a pipe
    with process:
        try:
            with process.stdin:
                _write_layout(process.stdin, json.dumps(index).encode(), blobs)
        except BrokenPipeError:
            pass  # the command says why it ended
        told = process.stderr.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise EngineCallError(" ".join(command), told[-2000:])


def _write_layout(stream: IO[bytes], index: bytes, blobs: Mapping[str, Path]) -> None:
    documents = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    with tarfile.open(fileobj=stream, mode="w|", bufsize=2**20) as archive:
        for name, data in documents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for digest, path in sorted(blobs.items()):
            member = tarfile.TarInfo(f"blobs/{digest.replace(':', '/')}")
            member.size = path.stat().st_size
            with path.open("rb") as file:
                archive.addfile(member, file)
