"""Layers made from wheels without BuildKit: byte for byte those that it makes of the same Dockerfile."""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from repro_image.adapters import layer_loader
from repro_image.adapters.engine import PACKAGES_REPOSITORY, ROOT_REPOSITORY, Engine
from repro_image.adapters.files import Project
from repro_image.adapters.layer_loader import LayerLoader, ReadyLayer
from repro_image.adapters.store import Store, hash_file
from repro_image.cli import group
from repro_image.core.layered_image import AddedLayer
from repro_image.core.layers import layer_groups
from repro_image.core.lockfile import LockedWheel, print_json_lock, print_requirements
from repro_image.core.reference import sha256_digest
from repro_image.steps import layers
from tests.scratch import IMAGE, Run, Scratch, containers, docker, wait_until

pytestmark = pytest.mark.docker

FILES = {
    "{name}/__init__.py": "def main():\n    return {'a': 1, 'b': [2, 3]}\n",
    "{name}/no_python.py": "this is = no python\n",
    "{name}/" + "d" * 60 + "/" + "f" * 70 + ".txt": "a path for two fields",
    "{name}/" + "n" * 130 + ".txt": "a name that is too long for either",
    "{name}/caf\u00e9-\u4f60.txt": "not ASCII",
    "{name}-1.data/scripts/{name}-run": "#!python\nprint(1)\n",
    "{name}-1.data/data/share/{name}.txt": "data",
    "{name}-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
    "{name}-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "{name}-1.dist-info/entry_points.txt": "[console_scripts]\n{name}-main = {name}:main\n",
}


def make_wheel(name: str, changes: dict[str, str] | None = None) -> bytes:
    """Return a wheel with a file of every kind that an installer knows."""
    texts = {path.replace("{name}", name): text.replace("{name}", name) for path, text in FILES.items()}
    files = {path: text.encode() for path, text in {**texts, **(changes or {})}.items()}
    rows = [f"{path},sha256={_base64(data)},{len(data)}" for path, data in files.items()]
    record = f"{name}-1.dist-info/RECORD"
    files[record] = "\n".join([*rows, f"{record},,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in files.items():
            member = zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0))
            member.external_attr = (0o100755 if path.endswith(".txt") else 0o100600) << 16
            archive.writestr(member, data)
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def make_project(folder: Path, store: Store, wheels: dict[str, bytes]) -> Scratch:
    """The CPU image with these wheels in the place of its own, in a repository of its own."""
    scratch = Scratch(folder, store.root)
    settings = folder / "pyproject.toml"
    text = settings.read_text()
    settings.write_text(text.replace('repository = "repro-image"', 'repository = "repro-image-layers"'))
    lock = Project(folder).locks(IMAGE).requirements
    locked = []
    for name, data in sorted(wheels.items()):
        store.add_bytes(data, sha256_digest(data))
        locked.append(
            LockedWheel(
                name=name,
                version="1",
                sha256=sha256_digest(data),
                filename=f"{name}-1-py3-none-any.whl",
                size_bytes=len(data),
            )
        )
    (scratch.locks / "requirements.txt").write_text(print_requirements(replace(lock, wheels=tuple(locked))))
    return scratch


@pytest.fixture(scope="module")
def own_store(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """What the locks name is at hand; no layer is kept."""
    scratch = Scratch(tmp_path_factory.mktemp("locks"), store.root)
    fetched = scratch.run("fetch", IMAGE)
    assert fetched.code == 0, fetched.err
    locks = Project(scratch.folder).locks(IMAGE)
    own = Store(tmp_path_factory.mktemp("store"))
    for digest in (
        locks.base.root,
        locks.requirements.installer.sha256,
        *(file.sha256 for file in locks.model.files),
    ):
        own.path(digest).parent.mkdir(parents=True, exist_ok=True)
        try:
            own.path(digest).hardlink_to(store.path(digest))
        except OSError:
            shutil.copy(store.path(digest), own.path(digest))
    yield own
    listed = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "repro-image-layers/*")
    for reference in listed.split():
        docker("image", "rm", "--force", reference)


MODULES = 64
WHEELS = {
    **{name: make_wheel(name) for name in ("alpha", "beta", "gamma")},
    "delta": make_wheel("delta", {f"delta/m{number}.py": f"x = {number}\n" for number in range(MODULES)}),
}


@pytest.fixture(scope="module")
def built(own_store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scratch, Run]:
    scratch = make_project(tmp_path_factory.mktemp("project"), own_store, WHEELS)
    return scratch, build(scratch)


def build(scratch: Scratch, *options: str, **how: object) -> Run:
    found = scratch.run("build", IMAGE, "--no-golden", "--json", *options, **how)  # type: ignore[arg-type]
    assert found.code == 0, found.err
    return found


def diff_ids(found: Run) -> list[str]:
    text = docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", found.json[0]["reference"])
    listed: list[str] = json.loads(text)
    return listed


def test_buildkit_alone_makes_the_same_image(built: tuple[Scratch, Run]) -> None:
    scratch, found = built
    assert "build: layer bucket-" in found.err
    before = diff_ids(found)
    alone = build(scratch, "--no-cache")
    assert "build: layer" not in alone.err
    assert diff_ids(alone) == before
    assert alone.json[0]["config"] == found.json[0]["config"]


def test_another_umask_locale_and_clock_make_the_same_layers(
    built: tuple[Scratch, Run], elsewhere: Mapping[str, str]
) -> None:
    scratch, found = built
    shutil.rmtree(scratch.store / "layers")
    # Nor does the builder in use: this one is not even there.
    others = {"PYTHONHASHSEED": "7", "BUILDX_BUILDER": "another"}
    again = build(scratch, umask=0o077, environment={**elsewhere, **others})
    assert "build: layer bucket-" in again.err
    assert again.json[0]["config"] == found.json[0]["config"]


@pytest.mark.parametrize(
    "pages", [1, MODULES * 3 // 2], ids=["no room for files", "room for files and some of their bytecode"]
)
def test_wheels_that_do_not_fit_into_memory_after_all_are_unpacked_on_the_disk(
    built: tuple[Scratch, Run], monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    """What installs wheels passes over bytecode that it cannot write."""
    scratch, found = built
    shutil.rmtree(scratch.store / "layers")
    monkeypatch.setattr(layers, "memory_to_unpack", lambda *_, **__: 4096 * pages)
    place = ["--project", str(scratch.folder), "--store", str(scratch.store)]
    again = CliRunner().invoke(group, [*place, "build", IMAGE, "--no-golden", "--json"])
    assert again.exit_code == 0, again.output
    assert "build: layer bucket-" in again.stderr
    assert json.loads(again.stdout)[0]["config"] == found.json[0]["config"]


def test_the_engine_may_clear_away_what_has_no_name_at_any_moment(
    built: tuple[Scratch, Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One name for all calls ended so: the image below was cleared away while the next was unpacked on it."""
    del built  # it has loaded a root
    root = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", ROOT_REPOSITORY).split()[0]
    names = (f"{PACKAGES_REPOSITORY}:busy-1", f"{PACKAGES_REPOSITORY}:busy-2")
    monkeypatch.setattr(layer_loader, "_CALL_BYTES", 1)
    monkeypatch.setattr(layer_loader, "_GONE", "no second try")
    engine = Engine()
    loader = LayerLoader(engine, root, names=names, count=12, source_date_epoch=1)
    try:
        with _busy_collector():
            loader.start()
            for number in range(12):
                loader.put(number, _ready_layer(tmp_path, number))
            assert loader.close() == names[1]
    finally:
        for name in names:
            engine.untag(name)


def _ready_layer(folder: Path, number: int) -> ReadyLayer:
    """Return a new layer of files that take the engine a moment."""
    file = folder / f"{number}.tar"
    with tarfile.open(file, "w") as archive:
        for name in range(150):
            member = tarfile.TarInfo(f"x/{number}/{name}")
            member.size = 2000
            archive.addfile(member, io.BytesIO(os.urandom(2000)))
    layer = AddedLayer(digest=hash_file(file), size_bytes=file.stat().st_size, step=f"COPY {number}")
    return ReadyLayer(layer=layer, file=file)


@contextmanager
def _busy_collector() -> Iterator[None]:
    """Have containerd collect its garbage all the time, as it does when a lease is deleted in this way."""
    told = json.loads(docker("info", "--format", "{{json .Containerd}}")) or {}  # nothing before Docker 27
    address = told.get("Address") or "/var/run/docker/containerd/containerd.sock"
    leases = ["ctr", "--address", address, "--namespace", "moby", "leases"]
    done = threading.Event()
    collected = []

    def collect() -> None:
        while not done.is_set():
            for words in (["create", "--id", "test"], ["delete", "--sync", "test"]):
                subprocess.run([*leases, *words], check=True, capture_output=True)
            collected.append(1)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert len(collected) > 5, "the collector did not run"


def test_locks_of_another_moment_take_no_layer_of_the_old_one(
    built: tuple[Scratch, Run], tmp_path: Path
) -> None:
    """BuildKit takes a COPY for cached where names and contents are, whatever the times of the files."""
    later = make_project(tmp_path / "later", Store(built[0].store), WHEELS)
    project = Project(later.folder)
    base = project.base_lock(IMAGE)
    moved = replace(base, source_date_epoch=base.source_date_epoch + 500)
    project.write_lock(IMAGE, "debian.json", print_json_lock(moved))
    cached = build(later)
    assert set(diff_ids(cached)[1:]).isdisjoint(diff_ids(built[1]))
    anew = build(later, "--no-cache")
    assert anew.json[0]["config"] == cached.json[0]["config"]


def test_layers_are_kept_also_when_engine_and_builder_forgot_the_image(built: tuple[Scratch, Run]) -> None:
    scratch, found = built
    docker("image", "rm", "--force", found.json[0]["reference"])
    again = build(scratch)
    assert "build: layer" not in again.err
    assert again.json[0]["config"] == found.json[0]["config"]


def test_a_bump_makes_its_own_layer_and_leaves_the_others(built: tuple[Scratch, Run], tmp_path: Path) -> None:
    scratch, found = built
    before = diff_ids(found)
    newer = {**WHEELS, "beta": make_wheel("beta", {"beta/more.py": "more = 1\n"})}
    bumped = make_project(tmp_path / "bumped", Store(scratch.store), newer)
    after = build(bumped)
    (bucket,) = [
        group.name
        for group in layer_groups(Project(bumped.folder).locks(IMAGE).requirements.wheels)
        if "beta" in {wheel.name for wheel in group.wheels}
    ]
    assert [line for line in after.err.splitlines() if "build: layer" in line] == [
        line for line in after.err.splitlines() if f"build: layer {bucket} " in line
    ]
    assert [a == b for a, b in zip(before, diff_ids(after), strict=True)].count(False) == 1


def test_the_files_are_those_that_an_installer_leaves(built: tuple[Scratch, Run]) -> None:
    _, found = built
    listing = docker(
        *("run", "--rm", "--network", "none", found.json[0]["reference"], "sh", "-c"),
        "cd /opt/env && find alpha* bin/alpha* share -type f -printf '%m %u %T@ %p\\n'",
    )
    files = {line.split(" ", 3)[3]: line.split(" ", 3)[:3] for line in listing.splitlines()}
    assert {mode for mode, _, _ in files.values()} == {"644", "755"}
    assert {(owner, moment.split(".")[0]) for _, owner, moment in files.values()} == {
        ("root", str(Project(built[0].folder).locks(IMAGE).base.source_date_epoch))
    }
    assert files["bin/alpha-run"][0] == files["bin/alpha-main"][0] == "755"
    assert "alpha/__pycache__/__init__.cpython-311.pyc" in files
    assert "alpha/__pycache__/no_python.cpython-311.pyc" not in files
    assert {"alpha/caf\u00e9-\u4f60.txt", "share/alpha.txt", "alpha-1.dist-info/RECORD"} <= set(files)
    assert docker("run", "--rm", "--network", "none", found.json[0]["reference"], "alpha-run") == "1"


def test_a_dockerfile_with_steps_of_its_own_is_built_as_it_says(
    built: tuple[Scratch, Run], tmp_path: Path
) -> None:
    scratch = make_project(tmp_path / "project", Store(built[0].store), WHEELS)
    template = scratch.folder / "images" / IMAGE / "Dockerfile.j2"
    text = template.read_text().replace(
        "\nFROM packages\n", "\nRUN --network=none echo own >/opt/env/own\n\nFROM packages\n"
    )
    template.write_text(text)
    found = build(scratch)
    assert "build: layer" not in found.err
    reference = found.json[0]["reference"]
    assert docker("run", "--rm", "--network", "none", reference, "cat", "/opt/env/own") == "own"


@pytest.mark.parametrize("path", ["../../../../escaped.txt", "/escaped.txt"])
def test_a_wheel_cannot_write_outside_of_its_layer(
    built: tuple[Scratch, Run], tmp_path: Path, path: str
) -> None:
    evil = {"evil": make_wheel("evil", {path: "escaped"})}
    scratch = make_project(tmp_path / "project", Store(built[0].store), evil)
    found = scratch.run("build", IMAGE, "--no-golden")
    if found.code == 0:  # left out or put inside; nowhere else
        reference = f"repro-image-layers/{IMAGE}:{tag(found)}"
        search = "find / -xdev -name escaped.txt 2>/dev/null || true"
        names = docker("run", "--rm", "--network", "none", reference, "sh", "-c", search)
        assert all(name.startswith("/opt/env/") for name in names.split())
    else:
        assert found.code == 5, found.err
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not list(scratch.store.rglob("escaped.txt"))


def tag(found: Run) -> str:
    (line,) = [line for line in found.out.splitlines() if "tag:" in line]
    return line.rpartition(":")[2]


def test_a_kept_layer_that_rotted_is_refused_by_name_and_made_anew_when_it_is_gone(
    built: tuple[Scratch, Run], tmp_path: Path
) -> None:
    scratch = make_project(tmp_path / "project", Store(built[0].store), {"rotten": make_wheel("rotten")})
    whole = build(scratch)
    record = max((scratch.store / "layers").iterdir(), key=lambda path: path.stat().st_mtime)
    size = int(record.read_text().split()[1])
    file = Store(scratch.store).path(sha256_digest(b"what the engine has never seen"))
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(bytes(size))
    record.write_text(f"sha256:{file.parent.name}{file.name} {size}\n")
    found = scratch.run("build", IMAGE, "--no-golden")
    assert found.code == 3, found.out + found.err
    assert f"rm {file}" in found.err
    file.unlink()
    assert build(scratch).json[0]["config"] == whole.json[0]["config"]


def test_a_build_that_is_killed_leaves_no_container_and_no_half_layer(
    built: tuple[Scratch, Run], tmp_path: Path
) -> None:
    wheels = {"killed": make_wheel("killed", {f"killed/m{n}.py": "x = 1\n" * 2000 for n in range(200)})}
    scratch = make_project(tmp_path / "project", Store(built[0].store), wheels)
    kept = sorted((scratch.store / "layers").iterdir())
    before = set(containers())
    process = scratch.start("build", IMAGE, "--no-golden")
    assert wait_until(lambda: set(containers()) - before, seconds=30)
    process.kill()
    process.communicate()
    assert wait_until(lambda: set(containers()) <= before, seconds=30)
    assert sorted((scratch.store / "layers").iterdir()) == kept
    build(scratch)
    assert len(list((scratch.store / "layers").iterdir())) == len(kept) + 1
