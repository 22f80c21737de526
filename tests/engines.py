"""Docker Engines of the tests' own: each with its socket, its containerd and its folders, and no network."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.scratch import wait_until

_SETTINGS = '{"features": {"containerd-snapshotter": true}}'
_START_S, _STOP_S = 60, 60


@contextmanager
def private_engine(programs: Path | None = None) -> Iterator[dict[str, str]]:
    """Start an engine with an empty build cache; yield the variables of a client that asks it.

    programs: the root of an unpacked engine (dockerd, containerd, docker, buildx); by default this machine's.
              runc is always this machine's: the newer one asks for a newer C library.
    """
    folder = Path(tempfile.mkdtemp(prefix="engine-", dir="/tmp"))  # a socket's path has to be short
    client = {"DOCKER_HOST": f"unix://{folder}/docker.sock"}
    if programs is not None:
        (folder / "client/cli-plugins").mkdir(parents=True)
        (folder / "bin").mkdir()
        runc = shutil.which("runc")
        assert runc is not None
        (folder / "bin/runc").symlink_to(runc)
        plugin = programs / "usr/libexec/docker/cli-plugins/docker-buildx"
        (folder / "client/cli-plugins/docker-buildx").symlink_to(plugin)
        paths = [folder / "bin", programs / "usr/bin", programs / "usr/sbin", os.environ["PATH"]]
        client |= {"DOCKER_CONFIG": f"{folder}/client", "PATH": ":".join(str(path) for path in paths)}
    (folder / "daemon.json").write_text(_SETTINGS)
    with (folder / "log").open("wb") as log:
        # A second engine must not touch the first one's bridge and rules: it gets a network namespace.
        process = subprocess.Popen(
            ["unshare", "--net", *_command(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **client},
            start_new_session=True,
        )
    try:
        answers = wait_until(lambda: process.poll() is not None or _answers(client), seconds=_START_S)
        assert answers, (folder / "log").read_text()[-2000:]
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder)


def _command(folder: Path) -> list[str]:
    command = ["dockerd", f"--config-file={folder}/daemon.json", f"--host=unix://{folder}/docker.sock"]
    command += [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"]
    return [*command, "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]


def _answers(client: dict[str, str]) -> bool:
    done = subprocess.run(
        ["docker", "version"], capture_output=True, check=False, env={**os.environ, **client}
    )
    return done.returncode == 0
