"""A real registry server, Debian's docker-registry, on loopback where nothing else is said."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from repro_image.core.reference import sha256_digest
from tests.scratch import docker

PROGRAM = Path(sys.executable).parent / "docker-registry"  # .ci/setup puts it there
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry that is running.

    host:   with its port; folder: what it stores; pid: of its process.
    ca:     certificate that it answers with; None: it speaks plain HTTP.
    """

    host: str
    folder: Path
    pid: int
    ca: Path | None = None

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
            f"{'https' if self.ca else 'http'}://{self.host}/v2/{path}",
            data=body,
            headers=dict(headers),
            method=method,
        )
        context = ssl.create_default_context(cafile=str(self.ca)) if self.ca else None
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            found: bytes = answer.read()
            return found


# The user ``me`` with the password ``secret``, as `htpasswd -B` writes it.
HTPASSWD = "me:$2y$05$gRgTh0g89uUZqQl6N.xRHuhjvUEPS3UqvyXjtgl77NqDq6.ovKCoW\n"


@contextlib.contextmanager
def running_registry(
    folder: Path, *, address: str = "127.0.0.1", certificate: Path | None = None, with_users: bool = False
) -> Iterator[Registry]:
    """Run a registry that stores its blobs below ``folder`` on a free port, until the block ends.

    certificate: file with certificate and key, for TLS.
    with_users:  let in only who logs in as ``me`` with ``secret``.
    """
    host, settings, log = f"{address}:{free_port(address)}", folder / "registry.yml", folder / "registry.log"
    tls = f", tls: {{certificate: {certificate}, key: {certificate}}}" if certificate else ""
    text = (
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/blobs}}}}\n"
        f"http: {{addr: '{host}'{tls}}}\n"
        "log: {accesslog: {disabled: true}}\n"
    )
    if with_users:
        (folder / "users").write_text(HTPASSWD)
        text += f"auth: {{htpasswd: {{realm: test, path: {folder}/users}}}}\n"
    settings.write_text(text)
    with log.open("w") as output:
        process = subprocess.Popen([PROGRAM, "serve", settings], stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_it_listens(process, host, log)
        yield Registry(host=host, folder=folder / "blobs", pid=process.pid, ca=certificate)
    finally:
        process.terminate()
        process.wait(timeout=30)


def make_certificate(folder: Path, name: str, *, address: str) -> Path:
    """Return a file with a new self-signed certificate for an address, and its key."""
    file, key = folder / f"{name}.pem", folder / f"{name}.key"
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{address}"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-keyout", str(key), "-out", str(file), *subject]
    subprocess.run(command, check=True, capture_output=True)
    file.write_text(file.read_text() + key.read_text())
    return file


@contextlib.contextmanager
def cutting_proxy(target: str, *, after_bytes: Callable[[int], int | None]) -> Iterator[str]:
    """Pass connections on to ``target`` and cut them; yield the proxy's host and port.

    after_bytes: number of the connection, from 0 -> how many bytes to the target are let through; None: all.
    """
    host, _, port = target.partition(":")
    threads: list[threading.Thread] = []
    ends: list[socket.socket] = []

    def begin(act: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=act, args=arguments, daemon=True)
        thread.start()
        threads.append(thread)
        return thread

    def copy(source: socket.socket, sink: socket.socket, left: int) -> None:
        with contextlib.suppress(OSError):
            while left and (data := source.recv(min(65536, left))):
                sink.sendall(data)
                left -= len(data)
        for side in (source, sink):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def pass_on(near: socket.socket, number: int) -> None:
        limit = after_bytes(number)
        with near, socket.create_connection((host, int(port))) as far:
            ends.extend((near, far))
            back = begin(copy, far, near, sys.maxsize)
            copy(near, far, sys.maxsize if limit is None else limit)
            back.join()

    def serve() -> None:
        with contextlib.suppress(OSError):
            for number in itertools.count():
                begin(pass_on, listener.accept()[0], number)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        begin(serve)
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for end in (listener, *ends):
                with contextlib.suppress(OSError):  # a client may keep a connection that it no longer needs
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(timeout=10)


def _wait_until_it_listens(process: "subprocess.Popen[bytes]", host: str, log: Path) -> None:
    address, port = host.split(":")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection((address, int(port)), timeout=5).close()
            return
        time.sleep(0.05)
    raise RuntimeError(f"the registry does not answer:\n{log.read_text()}")


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as free:
        free.bind((address, 0))
        port: int = free.getsockname()[1]
        return port
