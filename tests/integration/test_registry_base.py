"""A base of kind ``registry``, from a real registry server on loopback to a built image."""

import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from repro_image.adapters.debian import make_root, resolve_debs
from repro_image.adapters.engine import BASE_REPOSITORY, ROOT_REPOSITORY, Engine
from repro_image.adapters.pip_settings import read_pip_settings
from repro_image.adapters.store import Store
from repro_image.adapters.web import Web
from repro_image.core.project import DebianBase, Settings
from repro_image.steps.fetch import fetch_debs
from tests.integration.conftest import Quiet
from tests.registry import OCI_INDEX, OCI_MANIFEST, Registry, running_registry
from tests.scratch import REPOSITORY, Run, Scratch, docker

pytestmark = pytest.mark.docker

IMAGE = "small"
# A base as distributions publish them: apt, the keys of its archives, and no Python.
BASE = DebianBase(suite="bookworm", packages={"apt": "installs packages"})
TABLES = """\
[base]
kind = "registry"
reference = "{reference}"

[base.packages]
python3 = "runs it"
libnuma1 = "a small library"

[python]
version = "3.11"

"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def debian(registry: Registry, store: Store) -> str:
    """Repository of a Debian base in the registry; its tag ``stable`` names an index of two platforms."""
    name = f"{registry.host}/debian"
    with store.workspace() as folder:
        resolved = resolve_debs(BASE, settings=Settings(), workspace=folder)
        fetch_debs(
            resolved.packages,
            image=IMAGE,
            settings=Settings(),
            store=store,
            web=Web(read_pip_settings()),
            reporter=Quiet(),
        )
        debs = {deb: store.path(deb.sha256) for deb in resolved.packages}
        tar = make_root(debs, source_date_epoch=resolved.source_date_epoch, workspace=folder)
        registry.push(tar, "debian:bare")
        with tarfile.open(tar, "a") as archive:  # as in every published base
            device_folder = tarfile.TarInfo("./dev")
            device_folder.type, device_folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(device_folder)
        registry.push(tar, "debian:amd64", 'ENTRYPOINT ["/nothing"]', "USER 65534", "WORKDIR /usr")
    put_index(registry, "debian:stable", {"arm64": other(registry, "debian:arm64"), "amd64": "debian:amd64"})
    return name


def other(registry: Registry, name: str, *changes: str) -> str:
    """Push an image that is no Debian; return ``name``."""
    tar = registry.folder / "other.tar"
    with tarfile.open(tar, "w") as archive:
        archive.add(Path(__file__), arcname=name)
    registry.push(tar, name, *changes)
    return name


def put_index(registry: Registry, name: str, platforms: dict[str, str]) -> str:
    manifests = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": registry.digest(one),
            "size": len(registry.get(one)),
            "platform": {"os": "linux", "architecture": architecture},
        }
        for architecture, one in platforms.items()
    ]
    return registry.put(name, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})


def make_project(folder: Path, store: Store, reference: str) -> Scratch:
    """A project with one image, of the CPU image's settings and with one small wheel."""
    scratch = Scratch(folder, store.root, IMAGE)
    (folder / "images" / IMAGE).mkdir()
    shutil.copy(folder / "images/vllm-cpu/Dockerfile.j2", folder / "images" / IMAGE)
    text = (folder / "images/vllm-cpu/image.toml").read_text()
    tables = TABLES.format(reference=reference)
    text = re.sub(r"\[base\].*?(?=\[model\])", lambda _: tables, text, flags=re.DOTALL)
    scratch.image_toml.write_text(text)
    (folder / f"requirements/{IMAGE}.in").write_text("packaging==25.0\n")
    scratch.locks.mkdir()
    shutil.copy(REPOSITORY / "locks/vllm-cpu/model.json", scratch.locks)
    shutil.copy(REPOSITORY / "locks/vllm-cpu/debian.json", scratch.locks)  # of the kind that it had before
    return scratch


@dataclass(frozen=True, slots=True)
class Locked:
    scratch: Scratch
    registry: Registry
    run: Run

    @property
    def base(self) -> dict[str, object]:
        fields: dict[str, object] = json.loads((self.scratch.locks / "base.json").read_text())
        return fields


@pytest.fixture(scope="module")
def locked(
    registry: Registry, debian: str, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Locked]:
    scratch = make_project(tmp_path_factory.mktemp("project"), store, f"{debian}:stable")
    before = image_names()
    run = scratch.run("lock", IMAGE, "--json")
    assert run.code == 0, run.err
    yield Locked(scratch, registry, run)
    pulled = docker("image", "ls", "--quiet", "--filter", f"reference={registry.host}/*").split()
    made = {name for name in image_names() - before if name.startswith((ROOT_REPOSITORY, BASE_REPOSITORY))}
    docker("rmi", "--force", *made, *set(pulled))


def image_names() -> set[str]:
    return set(docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split())


def test_lock_names_the_index_the_manifest_the_configuration_and_the_packages(locked: Locked) -> None:
    assert locked.run.json[0]["changed"] == ["base.json", "requirements.txt", "debian.json"]
    assert not (locked.scratch.locks / "debian.json").exists()
    base, registry = locked.base, locked.registry
    manifest = json.loads(registry.get("debian:amd64"))
    assert base["index"] == registry.digest("debian:stable")
    assert base["manifest"] == registry.digest("debian:amd64")
    assert base["config"] == manifest["config"]["digest"]
    assert base["distribution"] == "debian"
    packages = {package["name"] for package in base["packages"]}  # type: ignore[attr-defined]
    assert {"python3", "libnuma1"} < packages
    assert not packages & {"apt", "libc6"}  # the base has them


def test_lock_check_needs_neither_the_registry_nor_the_engine(locked: Locked) -> None:
    environment = {"DOCKER_HOST": "unix:///nowhere.sock", "HTTP_PROXY": "http://127.0.0.1:9"}
    assert locked.scratch.run("lock", "--check", IMAGE, environment=environment).code == 0
    locked.scratch.change_image('libnuma1 = "a small', 'zlib1g = "x"\nlibnuma1 = "a small')
    try:
        stale = locked.scratch.run("lock", "--check", IMAGE, environment=environment)
    finally:
        locked.scratch.change_image('zlib1g = "x"\n', "")
    assert stale.code == 3
    assert f"locks/{IMAGE}/base.json  the lock is stale: base in image.toml changed since" in stale.out


def test_the_rendered_file_names_the_manifest_by_digest(locked: Locked) -> None:
    assert locked.scratch.run("render", IMAGE).code == 0
    lines = (locked.scratch.locks / "Dockerfile").read_text().splitlines()
    manifest = locked.registry.digest("debian:amd64")
    assert next(line for line in lines if line.startswith("FROM ")) == (
        f"FROM {locked.registry.host}/debian:stable@{manifest} AS root"
    )


def test_a_moved_tag_changes_nothing_until_an_upgrade(locked: Locked) -> None:
    registry, lock = locked.registry, locked.scratch.locks / "base.json"
    before = lock.read_bytes()
    index = registry.get("debian:stable")
    put_index(registry, "debian:stable", {"amd64": "debian:arm64"})
    try:
        assert locked.scratch.run("lock", IMAGE, "--json").json[0]["changed"] == []
        locked.scratch.change_image('libnuma1 = "a small', 'zlib1g = "in the base"\nlibnuma1 = "a small')
        assert locked.scratch.run("lock", IMAGE, "--json").json[0]["changed"] == ["base.json"]
        assert locked.base["manifest"] == registry.digest("debian:amd64")
        upgrade = locked.scratch.run("lock", IMAGE, "--upgrade")
    finally:
        locked.scratch.change_image('zlib1g = "in the base"\n', "")
        lock.write_bytes(before)
        registry.put("debian:stable", json.loads(index))
    assert upgrade.code == 3
    assert "the image cannot be a base: its files cannot be listed" in upgrade.err


def test_two_builds_without_the_registry_are_one_image(locked: Locked) -> None:
    assert locked.scratch.run("fetch", IMAGE).code == 0
    configs = set()
    with locked.registry.silent():
        for options in (["--no-cache"], ["--no-cache"], []):  # by BuildKit alone, and with layers of our own
            built = locked.scratch.run("build", IMAGE, "--no-golden", "--json", *options)
            assert built.code == 0, built.err
            configs.add(built.json[0]["config"])
    reference = built.json[0]["reference"]
    try:
        told = docker("run", "--rm", "--network", "none", reference, "python3", "-c", _LOOK)
    finally:
        docker("rmi", reference)
    assert len(configs) == 1
    assert json.loads(told) == {"packaging": "25.0", "user": 1000, "folder": "/", "left": []}


_LOOK = """
import glob, json, os, packaging
kinds = ("/var/log/*.log", "/var/lib/apt/lists/*_*", "/etc/machine-id", "/tmp/debs", "/var/cache/apt/*.bin")
left = [path for kind in kinds for path in glob.glob(kind)]
found = {"packaging": packaging.__version__, "user": os.getuid(), "folder": os.getcwd(), "left": left}
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("debian:nosuch", "the tag 'nosuch' is not there"),
        ("nosuch:stable", "the repository is not there"),
        ("debian:arm-only", "there is no linux/amd64 in {host}/debian:arm-only (there is: linux/arm64)"),
        ("debian:gone", "the image could not be pulled: "),
        ("debian:arm64", "the image cannot be a base: its files cannot be listed"),
        ("debian:bare", "the image cannot be a base: it lacks /dev, which each build makes"),
        ("debian:onbuild", "the image cannot be a base: it has ONBUILD steps"),
    ],
)
def test_a_base_that_cannot_be_had_is_told_and_nothing_is_written(
    registry: Registry, debian: str, store: Store, tmp_path: Path, name: str, message: str
) -> None:
    lost = ""
    if name == "debian:arm-only":
        put_index(registry, name, {"arm64": "debian:arm64"})
    if name == "debian:gone":
        lost = json.loads(registry.get(other(registry, name)))["layers"][0]["digest"]
        registry.lose(lost)
    if name == "debian:onbuild":
        other(registry, name, "ONBUILD RUN curl example.org | sh")
    scratch = make_project(tmp_path, store, f"{registry.host}/{name}")
    before = scratch.recorded()
    run = scratch.run("lock", IMAGE)
    assert run.code == (3 if "cannot be a base" in message else 5)
    assert message.format(host=registry.host) in run.err
    assert lost in run.err
    assert scratch.recorded() == before


def test_a_registry_is_asked_where_the_engine_asks_for_it(registry: Registry) -> None:
    assert Engine().registry_addresses(registry.host) == (f"http://{registry.host}",)
    assert Engine().registry_addresses("registry.example") == ("https://registry.example",)
    assert Engine().registry_addresses("docker.io")[-1] == "https://registry-1.docker.io"


def test_a_reference_without_a_tag_or_with_a_digest_is_a_fault_of_image_toml(
    store: Store, tmp_path: Path
) -> None:
    for number, reference in enumerate(
        ("docker.io/library/debian", "debian:12", f"a.io/b:c@sha256:{'0' * 64}")
    ):
        scratch = make_project(tmp_path / str(number), store, reference)
        run = scratch.run("lock", IMAGE)
        assert run.code == 3
        assert f"`$.base.reference` is not `registry/repository:tag`: '{reference}'" in run.err
