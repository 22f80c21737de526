"""A real registry server on loopback, Debian's docker-registry; images are pushed with the docker CLI."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from repro_image.core.reference import sha256_digest
from tests.scratch import docker

PROGRAM = Path(sys.executable).parent / "docker-registry"  # .ci/setup puts it there
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry that is running. host: with its port; folder: what it stores; pid: of its process."""

    host: str
    folder: Path
    pid: int

    def push(self, tar: Path, name: str, *changes: str) -> str:
        """Push the image of a root file system as ``name``, repository and tag; return its digest.

        changes: instructions such as ``USER 1``. The engine forgets the image afterwards.
        """
        reference = f"{self.host}/{name}"
        docker("import", *(part for change in changes for part in ("--change", change)), str(tar), reference)
        try:
            docker("push", "--quiet", reference)
        finally:
            docker("rmi", reference)
        return self.digest(name)

    def digest(self, name: str) -> str:
        return sha256_digest(self.get(name))

    def get(self, name: str) -> bytes:
        """Return the manifest or index that a repository and tag name."""
        repository, _, tag = name.partition(":")
        accept = {"Accept": f"{OCI_INDEX}, {OCI_MANIFEST}"}
        return self._call(f"{repository}/manifests/{tag}", headers=accept)

    def put(self, name: str, document: Mapping[str, object]) -> str:
        """Store a manifest or index under a repository and tag; return its digest."""
        repository, _, tag = name.partition(":")
        body = json.dumps(document).encode()
        kind = {"Content-Type": str(document["mediaType"])}
        self._call(f"{repository}/manifests/{tag}", headers=kind, body=body, method="PUT")
        return sha256_digest(body)

    def lose(self, digest: str) -> None:
        """Remove a blob's bytes, as a disk or a cleaner would."""
        hexes = digest.removeprefix("sha256:")
        shutil.rmtree(self.folder / "docker/registry/v2/blobs/sha256" / hexes[:2] / hexes)

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Let the registry take connections and answer none of them, for as long as the block runs."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def _call(
        self, path: str, *, headers: Mapping[str, str], body: bytes | None = None, method: str = "GET"
    ) -> bytes:
        request = urllib.request.Request(
            f"http://{self.host}/v2/{path}", data=body, headers=dict(headers), method=method
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: bytes = answer.read()
            return found


@contextlib.contextmanager
def running_registry(folder: Path) -> Iterator[Registry]:
    """Run a registry that stores its blobs below ``folder`` on a free port, until the block ends."""
    host, settings, log = f"127.0.0.1:{_free_port()}", folder / "registry.yml", folder / "registry.log"
    settings.write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/blobs}}}}\n"
        f"http: {{addr: '{host}'}}\n"
        "log: {accesslog: {disabled: true}}\n"
    )
    with log.open("w") as output:
        process = subprocess.Popen([PROGRAM, "serve", settings], stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_it_answers(process, host, log)
        yield Registry(host=host, folder=folder / "blobs", pid=process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", host: str, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://{host}/v2/", timeout=5).close()
            return
        time.sleep(0.05)
    raise RuntimeError(f"the registry does not answer:\n{log.read_text()}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
