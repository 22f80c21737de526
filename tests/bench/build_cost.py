"""What `repro-image build` costs beside a plain Dockerfile: seconds, bytes and memory, side by side.

usage: python -m tests.bench.build_cost [--rounds 3] [--json FILE] [--store DIR] [--only PIECE]…

Each cold build gives its files other times, so that no layer of it was ever in the engine before: "cold" is
cold, whatever the engine holds. The builder's cache is emptied before each; nothing else of the engine is
touched. Wheels, root and model come from the store's disk on both sides.
Prints a table for README and, with --json, every figure.
"""

import argparse
import ensurepip
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from msgspec.structs import replace

from repro_image.adapters.engine import Engine
from repro_image.adapters.files import DEBIAN, REQUIREMENTS, Project
from repro_image.adapters.image_archive import read_documents
from repro_image.adapters.image_blobs import has_blob, open_engine
from repro_image.adapters.store import Store
from repro_image.core.lockfile import LockedWheel, Locks, print_json_lock, print_requirements
from repro_image.steps.plan import plan_image
from tests.bench.counting_proxy import counting_proxy
from tests.registry import running_registry
from tests.scratch import COMMAND, IMAGE, Scratch, docker, wait_until

REPOSITORY = "repro-image-bench"
BUMPED = "idna"  # small, without dependencies, in a bucket with others
PLAIN = Path(__file__).parent / "plain"


@dataclass(slots=True)
class Bench:
    """One project with a store of its own, and what was measured. rounds: of each timing."""

    scratch: Scratch
    store: Store
    folder: Path
    rounds: int
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def locks(self) -> Locks:
        return Project(self.scratch.folder).locks(IMAGE)

    def build(self, *options: str) -> tuple[float, int]:
        """Run `repro-image build`; return its seconds and its peak memory in MB."""
        return measured(self.scratch.command("build", IMAGE, *options))

    def age(self) -> None:
        """Give the image other file times, so that none of its layers was made before, and drop kept ones."""
        for record in (self.store.root / "layers").glob("*"):
            self.store.path(record.read_text().split()[0]).unlink(missing_ok=True)
            record.unlink()
        lock = self.locks.base
        later = replace(lock, source_date_epoch=lock.source_date_epoch + 1)
        (self.scratch.locks / DEBIAN).write_text(print_json_lock(later))

    def forget_images(self) -> None:
        listed = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"{REPOSITORY}/*").split()
        for reference in listed:
            docker("image", "rm", "--force", reference)

    def bump(self) -> None:
        """Lock another wheel of BUMPED: the same with one more file."""
        lock = self.locks.requirements
        old = next(wheel for wheel in lock.wheels if wheel.name == BUMPED)
        file = self.folder / old.filename
        shutil.copy(self.store.path(old.sha256), file)
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(zipfile.ZipInfo(f"idna/bump_{time.monotonic_ns()}.py"), "bumped = True\n")
        new = replace(old, sha256=self.store.add(file), size_bytes=file.stat().st_size)
        wheels = tuple(new if wheel is old else wheel for wheel in lock.wheels)
        (self.scratch.locks / REQUIREMENTS).write_text(print_requirements(replace(lock, wheels=wheels)))


def measured(command: list[str], **how: Any) -> tuple[float, int]:
    """Run a command; return its seconds, and the peak memory in MB of it or of its largest child."""
    begin = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **how
    )
    assert process.stderr is not None
    words = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    seconds = time.monotonic() - begin
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{words.decode()[-3000:]}")
    return seconds, usage.ru_maxrss // 1024


def empty_builder() -> None:
    docker("builder", "prune", "--all", "--force")


def plain(bench: Bench) -> None:
    """A hand-written Dockerfile: pip installs the same wheels, the default export loads the image."""
    wheels, locks = bench.folder / "wheels", bench.folder / "locks"
    bench.store.lay_out(wheels, {w.filename: w.sha256 for w in bench.locks.requirements.wheels})
    locks.mkdir(exist_ok=True)
    pins = "".join(f"{w.name}=={w.version} --hash={w.sha256}\n" for w in bench.locks.requirements.wheels)
    (locks / "requirements.txt").write_text(pins)
    tools, empty = bench.folder / "tools", bench.folder / "empty"
    for made in (tools, empty):
        made.mkdir(exist_ok=True)
    for pip in (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"):
        shutil.copy(pip, tools)
    root = Engine().ensure_root(
        bench.locks.base.root,
        bench.store.path(bench.locks.base.root),
        created_s=bench.locks.base.source_date_epoch,
    )
    command = ["docker", "buildx", "build", "--load", "--network", "none", "--tag", f"{REPOSITORY}/plain:1"]
    contexts = {"base": f"docker-image://{root}", "wheels": wheels, "locks": locks, "tools": tools}
    for name, place in contexts.items():
        command += ["--build-context", f"{name}={place}"]
    seconds = []
    for _ in range(bench.rounds):
        bench.forget_images()
        empty_builder()
        seconds.append(measured([*command, "--file", str(PLAIN / "Dockerfile"), str(empty)])[0])
    bench.forget_images()
    bench.found["plain_s"] = seconds


def cold(bench: Bench) -> None:
    """Nothing kept, nothing in the builder, nothing in the engine; then the layers kept and the rest gone."""
    seconds, kept, memory = [], [], []
    for _ in range(bench.rounds):
        bench.forget_images()
        empty_builder()
        bench.age()
        took, peak = bench.build("--no-golden")
        seconds.append(took)
        memory.append(peak)
        bench.forget_images()
        empty_builder()
        kept.append(bench.build("--no-golden")[0])
    bench.found |= {"cold_s": seconds, "cold_memory_mb": memory, "kept_s": kept}


def alone(bench: Bench) -> None:
    """BuildKit makes the same image by itself, cold as above."""
    seconds = []
    for _ in range(bench.rounds):
        bench.forget_images()
        empty_builder()
        bench.age()
        seconds.append(bench.build("--no-golden", "--no-cache")[0])
    bench.found["alone_s"] = seconds


def bumped(bench: Bench) -> None:
    """One light package is another, all else is at hand."""
    bench.build("--no-golden")
    seconds = []
    for _ in range(bench.rounds):
        bench.bump()
        seconds.append(bench.build("--no-golden")[0])
    bench.found["bump_s"] = seconds


def unchanged(bench: Bench) -> None:
    """An epoch is recorded and its image at hand; the docker command line writes down who calls it."""
    bench.build()
    calls, shim = bench.folder / "calls", bench.folder / "bin"
    shim.mkdir(exist_ok=True)
    real = shutil.which("docker")
    (shim / "docker").write_text(f'#!/bin/sh\necho "$@" >>"{calls}"\nexec {real} "$@"\n')
    (shim / "docker").chmod(0o755)
    environment = {**os.environ, "PATH": f"{shim}:{os.environ['PATH']}"}
    command = bench.scratch.command("build", IMAGE)
    runs = [measured(command, env=environment) for _ in range(3 * bench.rounds)]
    bench.found["unchanged_s"] = [seconds for seconds, _ in runs]
    bench.found["unchanged_docker_calls"] = len(calls.read_text().splitlines()) if calls.exists() else 0


def starting(bench: Bench) -> None:
    """Commands that only read; each beside an interpreter that does nothing."""
    commands = {
        "interpreter": [sys.executable, "-c", "pass"],
        "version": [str(COMMAND), "--version"],
        "lock_check": bench.scratch.command("lock", IMAGE, "--check"),
        "render_check": bench.scratch.command("render", IMAGE, "--check"),
        "epochs_list": bench.scratch.command("epochs", "list"),
    }
    measured(bench.scratch.command("render", IMAGE))
    for name, command in commands.items():
        bench.found[f"{name}_s"] = [measured(command)[0] for _ in range(3 * bench.rounds)]


def size(bench: Bench) -> None:
    """Bytes of the layers beside bytes of the files in them."""
    bench.build("--no-golden")
    engine, reference = Engine(), image_of(bench)
    image = engine.image(reference)
    assert image is not None
    documents = read_documents(open_engine(engine, image, name=reference))
    files = docker(
        *("run", "--rm", "--network", "none", "--user", "0:0", reference, "sh", "-c"),
        "find / -xdev -type f -printf '%s\\n' | awk '{ n += $1 } END { printf \"%.0f\", n }'",
    )
    bench.found["layers_bytes"] = sum(layer.size for layer in documents.manifest.layers)
    bench.found["files_bytes"] = int(files)


def moved(bench: Bench) -> None:
    """Bytes that a bump moves to a registry and from there, beside its bucket as it is stored there."""
    with (
        tempfile.TemporaryDirectory(dir=bench.folder) as folder,
        running_registry(Path(folder)) as registry,
        counting_proxy(int(registry.host.rpartition(":")[2])) as proxy,
    ):
        remote = f"127.0.0.1:{proxy.port}/bench"
        bench.build("--no-golden")
        push(image_of(bench), f"{remote}:before")
        bench.bump()
        bench.build("--no-golden")
        proxy.reset()
        push(image_of(bench), f"{remote}:after")
        pushed = proxy.sent
        before, after = (json.loads(registry.get(f"bench:{tag}")) for tag in ("before", "after"))
        known = {layer["digest"] for layer in before["layers"]}
        changed = max(
            (layer for layer in after["layers"] if layer["digest"] not in known),
            key=lambda layer: layer["size"],
        )
        docker("image", "rm", "--force", image_of(bench), f"{remote}:after")
        empty_builder()
        # The engine drops what nothing needs any more a little later.
        digest, size = changed["digest"], changed["size"]
        wait_until(lambda: not has_blob(Engine(), digest, size), seconds=60)
        proxy.reset()
        docker("pull", "--quiet", f"{remote}:after")
        pulled = proxy.received
        docker("image", "rm", "--force", f"{remote}:before", f"{remote}:after")
    bench.found |= {"bucket_bytes": size, "pushed_bytes": pushed, "pulled_bytes": pulled}


def push(reference: str, remote: str) -> None:
    docker("tag", reference, remote)
    docker("push", "--quiet", remote)


def image_of(bench: Bench) -> str:
    """Return the name of what the last `build --no-golden` made."""
    plan = plan_image(Project(bench.scratch.folder), IMAGE)
    return f"{plan.repository}:{plan.build_tag}"


# The shortest first: a rented machine is slower once its cores were busy for a while.
PIECES: dict[str, Callable[[Bench], None]] = {
    one.__name__: one for one in (starting, plain, cold, alone, bumped, size, moved, unchanged)
}


def table(found: dict[str, Any]) -> str:
    """Return the README's rows of what was measured."""

    def seconds(name: str) -> float:
        return float(median(found[name]))

    rows: list[tuple[str, str, str]] = []
    if "plain_s" in found:
        rows.append(("plain Dockerfile, cold", f"{seconds('plain_s'):.1f} s", ""))
    # The factor that is promised against the plain build; none where nothing is.
    against: dict[str, tuple[str, float | None]] = {
        "cold_s": ("build, cold, no layer kept", 3.0),
        "kept_s": ("build, cold, layers kept", None),
        "alone_s": ("build --no-cache, BuildKit alone, cold", None),
        "bump_s": ("build, one light package bumped", 15.0),
    }
    for name, (words, factor) in against.items():
        if name in found:
            times = f"{seconds('plain_s') / seconds(name):.1f} x" if "plain_s" in found else "?"
            wanted = f"at least {factor:.0f} x" if factor else ""
            rows.append((words, f"{seconds(name):.1f} s, {times}", wanted))
    for name, words, limit in (
        ("unchanged_s", "build, nothing changed", 0.7),
        ("version_s", "`--version`", 0.1),
        ("lock_check_s", "`lock --check`", 0.3),
        ("render_check_s", "`render --check`", 0.3),
        ("epochs_list_s", "`epochs list`", 0.3),
    ):
        if name in found:
            rows.append((words, f"{1000 * seconds(name):.0f} ms", f"at most {1000 * limit:.0f} ms"))
    if "unchanged_docker_calls" in found:
        rows.append(("… calls of docker or its builder", str(found["unchanged_docker_calls"]), "0"))
    if "cold_memory_mb" in found:
        rows.append(("peak memory of the client", f"{max(found['cold_memory_mb'])} MB", "at most 200 MB"))
    if "layers_bytes" in found:
        over = 100 * (found["layers_bytes"] / found["files_bytes"] - 1)
        rows.append(("layers beside the files in them", f"+{over:.1f} %", "at most 3 %"))
    for name, words in (("pushed_bytes", "pushed for a bump"), ("pulled_bytes", "pulled for a bump")):
        if name in found:
            part = found[name] / found["bucket_bytes"]
            rows.append((words, f"{found[name] / 1e6:.1f} MB, {part:.2f} x its bucket", "at most 1.2 x"))
    lines = ["| what | measured | wanted |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    versions = Engine().versions
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "day": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": names[0].partition(": ")[2] if names else platform.processor(),
        "cores": os.cpu_count(),
        "engine": versions.engine,
        "buildx": versions.buildx,
        "python": platform.python_version(),
    }


def own_store(source: Store, folder: Path, locks: Locks) -> Store:
    """Return a store that holds what the locks name and no layer; its files are links."""
    store = Store(folder)
    wheels: tuple[LockedWheel, ...] = (locks.requirements.installer, *locks.requirements.wheels)
    digests = {locks.base.root, *(w.sha256 for w in wheels), *(file.sha256 for file in locks.model.files)}
    for digest in digests:
        store.path(digest).parent.mkdir(parents=True, exist_ok=True)
        store.path(digest).hardlink_to(source.path(digest))
    return store


def main() -> None:
    parser = argparse.ArgumentParser(description="What a build costs beside a plain Dockerfile.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--store", type=Path, default=Path.home() / ".cache/repro-image")
    parser.add_argument("--only", action="append", choices=list(PIECES))
    options = parser.parse_args()
    # An installed tool is compiled; that of a checkout is at its first use, unless this forbids it.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    source = Store(options.store)
    (source.root / "bench").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=source.root / "bench") as place:
        folder = Path(place)
        scratch = Scratch(folder / "project", folder / "store")
        measured(
            [str(COMMAND), "--project", str(scratch.folder), "--store", str(source.root), "fetch", IMAGE]
        )
        settings = scratch.folder / "pyproject.toml"
        text = settings.read_text()
        settings.write_text(text.replace('repository = "repro-image"', f'repository = "{REPOSITORY}"'))
        scratch.change_image('suite = "smoke"', 'suite = "tiny"')
        store = own_store(source, scratch.store, Project(scratch.folder).locks(IMAGE))
        bench = Bench(scratch, store, folder, options.rounds, {"machine": machine()})
        try:
            for name in options.only or PIECES:
                print(f"bench: {name}", file=sys.stderr, flush=True)
                PIECES[name](bench)
        finally:
            bench.forget_images()
            if options.json:
                options.json.write_text(json.dumps(bench.found, indent=2) + "\n")
    print(table(bench.found))


if __name__ == "__main__":
    main()
