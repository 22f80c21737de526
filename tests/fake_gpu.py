"""Machines with GPUs that are not there: gpu_stub/ stands in for NVIDIA's libraries, a profile is a machine.

subprocess.run(["repro-image", "doctor"], env={**os.environ, **profile("h100-sxm").environment()})

with cdi_devices("two-h100") as uuids:  # in containers, through the same interface as real GPUs
    engine.run_tool(image, command, gpus=uuids[:1])
"""

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

STUB = Path(__file__).parent / "gpu_stub"
LIBRARIES = {"nvml_stub.c": "libnvidia-ml.so.1", "cuda_stub.c": "libcuda.so.1"}
# The newest glibc symbols of these are from 2.7, so what is built here loads in containers that are older.
COMPILE = ("gcc", "-std=c11", "-D_DEFAULT_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")

KIND = "nvidia.com/gpu"
_SPECIFICATION = "repro-image-fake-gpu-"
# Where the container toolkit puts the libraries on Debian, and two places of our own.
_INSIDE, _PROFILE, _VISIBLE = (
    "/usr/lib/x86_64-linux-gnu",
    "/run/fake-gpu/profile.txt",
    "/run/fake-gpu/visible",
)


@dataclass(frozen=True, slots=True)
class Profile:
    """A machine, as gpu_stub/profiles/README.md describes them."""

    path: Path

    @property
    def uuids(self) -> tuple[str, ...]:
        """UUIDs of its GPUs, in order."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return tuple(line.split()[1] for line in lines if line.startswith("uuid "))

    def environment(self) -> dict[str, str]:
        """Variables with which a process of this machine sees these GPUs and no others."""
        folders = [str(libraries()), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": ":".join(folders), "FAKE_GPU_PROFILE": str(self.path)}


def profile(name: str) -> Profile:
    """Return one of the profiles that stand in gpu_stub/profiles, such as ``h100-sxm``."""
    return Profile(STUB / "profiles" / f"{name}.txt")


def profile_names() -> list[str]:
    return sorted(path.stem for path in (STUB / "profiles").glob("*.txt"))


@cache
def libraries() -> Path:
    """Return the folder with both stubs, built once for each state of their source."""
    sources = b"".join(path.read_bytes() for path in sorted(STUB.glob("*.[ch]")))
    name = f"repro-image-fake-gpu-{os.getuid()}-{hashlib.sha256(sources).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()) / name
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            for source, library in LIBRARIES.items():
                target = Path(made) / "out" / library
                target.parent.mkdir(exist_ok=True)
                arguments = [*COMPILE, f"-Wl,-soname,{library}", "-o", str(target), str(STUB / source)]
                subprocess.run(arguments, check=True)
            with contextlib.suppress(FileExistsError, OSError):  # another session was first
                (Path(made) / "out").rename(folder)
    return folder


@contextlib.contextmanager
def cdi_devices(machine: str | Profile) -> Iterator[tuple[str, ...]]:
    """Let the engine give this machine's GPUs to containers, and yield their UUIDs.

    Skips where that cannot be, or must not be because real GPUs are set up. One at a time for each profile,
    over all test sessions of this machine.
    """
    chosen = profile(machine) if isinstance(machine, str) else machine
    folders = _specification_folders()
    real = [path for folder in folders for path in _real_specifications(folder)]
    if real:
        pytest.skip(f"{real[0]} describes GPUs of this machine, which a fake one must not stand beside")
    with (Path(tempfile.gettempdir()) / f"{_SPECIFICATION}{os.getuid()}-{chosen.path.stem}.lock").open(
        "w"
    ) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = _writable(folders[-1]) / f"{_SPECIFICATION}{chosen.path.stem}.json"
        try:
            file.write_text(json.dumps(_specification(chosen), indent=2), encoding="utf-8")
            yield chosen.uuids
        finally:
            file.unlink(missing_ok=True)


def _specification_folders() -> list[Path]:
    """Folders that the engine looks for CDI specifications in, the one for short-lived ones last."""
    told = subprocess.run(
        ["docker", "info", "--format", "{{json .CDISpecDirs}}"], capture_output=True, text=True, check=True
    )
    folders = [Path(folder) for folder in json.loads(told.stdout) or []]
    if not folders:
        pytest.skip(
            'the Docker Engine has CDI off: set {"features": {"cdi": true}} in /etc/docker/daemon.json'
        )
    return folders


def _real_specifications(folder: Path) -> Iterator[Path]:
    for path in folder.glob("*") if folder.is_dir() else ():
        is_specification = path.suffix in (".json", ".yaml", ".yml")
        if is_specification and not path.name.startswith(_SPECIFICATION) and KIND in path.read_text("utf-8"):
            yield path


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        pytest.skip(f"{folder} cannot be made: {error.strerror}")
    if not os.access(folder, os.W_OK):
        pytest.skip(f"{folder} cannot be written")
    return folder


def _specification(chosen: Profile) -> dict[str, object]:
    """Return what `nvidia-ctk cdi generate` writes, cut down to what the stubs need."""
    mounts = [_mount(libraries() / name, f"{_INSIDE}/{name}") for name in LIBRARIES.values()]
    return {
        "cdiVersion": "0.6.0",
        "kind": KIND,
        "containerEdits": {
            "env": [f"FAKE_GPU_PROFILE={_PROFILE}", f"FAKE_GPU_VISIBLE={_VISIBLE}"],
            "mounts": [*mounts, _mount(chosen.path, _PROFILE)],
        },
        "devices": [
            {"name": uuid, "containerEdits": {"mounts": [_mount(chosen.path, f"{_VISIBLE}/{uuid}")]}}
            for uuid in chosen.uuids
        ],
    }


def _mount(source: Path, target: str) -> dict[str, object]:
    options = ["ro", "nosuid", "nodev", "bind"]
    return {"hostPath": str(source), "containerPath": target, "options": options}
