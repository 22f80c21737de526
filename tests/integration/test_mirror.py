"""`mirror push|pull`, and what `fetch` takes from a mirror image, against a real registry server."""

import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from repro_image.adapters.engine import BASE_REPOSITORY, Engine
from repro_image.adapters.files import Project
from repro_image.adapters.store import Store
from repro_image.core.inputs import base_inputs, model_inputs
from repro_image.core.lockfile import BaseLock, DebianLock, HubLock, ModelFile, print_json_lock
from repro_image.core.mirror import mirror_tag
from repro_image.core.reference import sha256_digest
from tests.integration.conftest import Quiet
from tests.pushing import log_in, set_setting
from tests.registry import Registry, cutting_proxy, free_port, running_registry
from tests.scratch import Run, Scratch, docker, linked_copy
from tests.small_project import IMAGE, lay_out

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

MODEL = """\
[model]
kind = "hub"
repository = "nobody/nothing"
revision = "main"
license = "Apache-2.0"

"""
FILES = {"config.json": b"{}", "model.safetensors": bytes(3 * 2**20), "tokenizer.json": b"{ }"}
NOWHERE = f"http://127.0.0.1:{free_port()}"
# No index, no hub, no mirror of a distribution: whoever asks one of them is refused at once.
ALONE = {
    "PIP_CONFIG_FILE": "/dev/null",
    "PIP_INDEX_URL": f"{NOWHERE}/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "HF_ENDPOINT": NOWHERE,
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def small(registry: Registry, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Scratch:
    """A project whose locks name a Debian root, one wheel and a model of three megabytes; it is mirrored."""
    scratch = lay_out(tmp_path_factory.mktemp("project"), store, Quiet())
    text = scratch.image_toml.read_text()
    scratch.image_toml.write_text(
        re.sub(r"\[model\].*?(?=\[golden\])", lambda _: MODEL, text, flags=re.DOTALL)
    )
    files = []
    for name, data in FILES.items():
        store.add_bytes(data, sha256_digest(data))
        files.append(ModelFile(path=name, sha256=sha256_digest(data), size_bytes=len(data)))
    lock = HubLock(
        inputs=model_inputs(Project(scratch.folder).image(IMAGE).model, converter=""),
        repository="nobody/nothing",
        commit="0" * 40,
        license="Apache-2.0",
        files=tuple(files),
    )
    (scratch.locks / "model.json").write_text(print_json_lock(lock))
    set_setting(scratch.folder, "repository", f"{registry.host}/team")
    pushed = scratch.run("mirror", "push", IMAGE, "--json")
    assert pushed.code == 0, pushed.err
    assert pushed.json["moved"] == pushed.json["files"]
    return scratch


@pytest.fixture
def alone(small: Scratch, tmp_path: Path) -> Scratch:
    """The same project on a machine that has nothing, and from where nothing but the registry is reached."""
    folder = tmp_path / "alone"
    shutil.copytree(small.folder, folder)
    set_setting(folder, "debian_mirror", f"{NOWHERE}/debian")
    other = Scratch.__new__(Scratch)
    other.folder, other.store, other.image = folder, tmp_path / "store", IMAGE
    return other


def pull(scratch: Scratch, *reference: str) -> Run:
    return scratch.run("mirror", "pull", IMAGE, *reference, "--json", environment=ALONE)


def test_a_mirror_is_one_artifact_with_one_layer_per_file(registry: Registry, small: Scratch) -> None:
    locks = Project(small.folder).locks(IMAGE)
    found = json.loads(registry.get(f"team/{IMAGE}-mirror:{mirror_tag(locks)}"))
    assert found["artifactType"] == "application/vnd.repro-image.mirror.v1+json"
    titles = {
        layer["annotations"]["org.opencontainers.image.title"]: layer["digest"] for layer in found["layers"]
    }
    assert isinstance(locks.base, DebianLock)
    assert titles["base/root.tar"] == locks.base.root
    [wheel] = locks.requirements.wheels
    assert titles[f"wheels/{wheel.filename}"] == wheel.sha256
    assert titles["model/model.safetensors"] == sha256_digest(FILES["model.safetensors"])
    assert len([title for title in titles if title.startswith("debs/")]) == len(locks.base.packages)
    again = small.run("mirror", "push", IMAGE, "--json")
    assert again.code == 0, again.err
    assert again.json["moved"] == 0


def test_an_image_is_built_from_a_pulled_mirror_with_no_index_and_no_distribution(alone: Scratch) -> None:
    pulled = pull(alone)
    assert pulled.code == 0, pulled.err
    assert pulled.json["moved"] == pulled.json["files"]
    built = alone.run("build", IMAGE, "--no-golden", "--json", environment=ALONE)
    assert built.code == 0, built.err
    docker("rmi", built.json[0]["reference"])
    again = pull(alone)
    assert again.json["moved"] == 0


def test_fetch_takes_from_the_mirror_what_is_gone_elsewhere(registry: Registry, alone: Scratch) -> None:
    pulled = pull(alone)
    assert pulled.code == 0, pulled.err
    locks = Project(alone.folder).locks(IMAGE)
    assert isinstance(locks.base, DebianLock)
    store, deb, [wheel] = Store(alone.store), locks.base.packages[0], locks.requirements.wheels
    for digest in (locks.base.root, deb.sha256, wheel.sha256, locks.model.files[0].sha256):
        store.path(digest).unlink()
    without = f"http://{registry.host}"  # a server that has none of them
    set_setting(alone.folder, "debian_mirror", f"{without}/debian")
    environment = {**ALONE, "PIP_INDEX_URL": f"{without}/simple", "HF_ENDPOINT": without}
    fetched = alone.run("fetch", IMAGE, environment=environment)
    assert fetched.code == 0, fetched.err
    assert store.has(deb.sha256, deb.size_bytes)
    assert store.has(wheel.sha256, wheel.size_bytes)
    assert "made root" in fetched.out


def test_a_deb_that_is_gone_everywhere_is_named_with_the_command(alone: Scratch) -> None:
    assert pull(alone).code == 0
    base = Project(alone.folder).locks(IMAGE).base
    assert isinstance(base, DebianLock)
    deb, store = base.packages[0], Store(alone.store)
    store.path(deb.sha256).unlink()
    store.path(base.root).unlink()
    with running_registry(alone.folder) as empty:
        set_setting(alone.folder, "repository", f"{empty.host}/team")
        set_setting(alone.folder, "debian_mirror", f"http://{empty.host}/debian")  # a server without it
        run = alone.run("fetch", IMAGE, environment=ALONE)
    assert run.code == 5
    assert f"the Debian package {deb.name} {deb.version} is gone" in run.err
    assert f"repro-image mirror push {IMAGE}" in run.err


def test_a_pull_that_was_cut_goes_on_where_it_ended(registry: Registry, alone: Scratch) -> None:
    reference = f"team/{IMAGE}-mirror:{mirror_tag(Project(alone.folder).locks(IMAGE))}"
    with cutting_proxy(registry.host, after_bytes=lambda number: 2000 if number < 3 else None) as host:
        run = pull(alone, f"{host}/{reference}")
    assert run.code == 0, run.err
    assert run.json["moved"] == run.json["files"]


def test_a_registry_with_users_wants_to_know_who_pulls(
    small: Scratch, alone: Scratch, tmp_path: Path
) -> None:
    with running_registry(tmp_path, with_users=True) as closed:
        reference = f"{closed.host}/team/mirror:1"
        known = log_in(tmp_path / "known", closed.host, "secret")
        assert small.run("mirror", "push", IMAGE, reference, environment=known).code == 0
        refused = pull(alone, reference)
        assert refused.code == 5
        assert f"docker login {closed.host}" in refused.err
        pulled = alone.run("mirror", "pull", IMAGE, reference, environment={**ALONE, **known})
    assert pulled.code == 0, pulled.err


def test_a_file_that_rotted_in_the_store_is_named_and_not_sent(
    registry: Registry, small: Scratch, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    linked_copy(small.store / "sha256", store.root / "sha256")
    path = store.path(sha256_digest(FILES["model.safetensors"]))
    size = path.stat().st_size
    path.unlink()  # it is a link to the shared store's
    path.write_bytes(b"x" * size)
    reference = f"{registry.host}/team/rotten:1"
    found = small.run("mirror", "push", IMAGE, reference, store=store.root)
    assert found.code == 3, found.err
    assert str(path) in found.err


def test_a_file_that_is_not_the_locked_one_is_refused(small: Scratch, alone: Scratch, tmp_path: Path) -> None:
    with running_registry(tmp_path) as other:
        reference = f"{other.host}/team/mirror:1"
        assert small.run("mirror", "push", IMAGE, reference).code == 0
        [wheel] = Project(small.folder).locks(IMAGE).requirements.wheels
        hexes = wheel.sha256.removeprefix("sha256:")
        data = other.folder / "docker/registry/v2/blobs/sha256" / hexes[:2] / hexes / "data"
        data.write_bytes(data.read_bytes()[::-1])
        run = pull(alone, reference)
    assert run.code == 5
    assert f"expected {wheel.sha256}, found " in run.err
    assert not Store(alone.store).path(wheel.sha256).exists()


def test_a_mirror_of_other_locks_is_refused_before_anything_is_downloaded(
    registry: Registry, small: Scratch, alone: Scratch
) -> None:
    locks = Project(small.folder).locks(IMAGE)
    own = f"team/{IMAGE}-mirror:{mirror_tag(locks)}"
    found = json.loads(registry.get(own))
    registry.put(f"team/{IMAGE}-mirror:less", {**found, "layers": found["layers"][1:]})
    run = pull(alone, f"{registry.host}/team/{IMAGE}-mirror:less")
    assert run.code == 5
    assert "the mirror image lacks 1 of the files that the locks name" in run.err
    assert not alone.store.exists()
    unknown = pull(alone, f"{registry.host}/team/{IMAGE}-mirror:none")
    assert unknown.code == 5
    assert "the tag 'none' is not there" in unknown.err
    assert pull(alone, "mirror").code == 2


def test_a_base_of_a_registry_is_mirrored_too_and_comes_back_under_its_digest(
    registry: Registry, small: Scratch, tmp_path: Path
) -> None:
    tar = tmp_path / "base.tar"
    with tarfile.open(tar, "w") as archive:
        archive.add(Path(__file__), arcname="file")
    manifest = registry.push(tar, "upstream/base:1")
    config = json.loads(registry.get("upstream/base:1"))["config"]["digest"]
    project = based_on(small, tmp_path / "project", f"{registry.host}/upstream/base:1", manifest, config)
    pushed = project.run("mirror", "push", IMAGE, "--json")
    assert pushed.code == 0, pushed.err
    name = f"{registry.host}/upstream/base@{manifest}"
    docker("rmi", name)
    assert Engine().image(name) is None
    shutil.rmtree(registry.folder / "docker/registry/v2/repositories/upstream")
    pulled = pull(project)
    assert pulled.code == 0, pulled.err
    try:
        assert Engine().image(name) is not None
        fetched = project.run("fetch", IMAGE, environment=ALONE)
        assert fetched.code == 0, fetched.err
    finally:
        docker("rmi", "--force", f"{registry.host}/upstream/base:1")
    assert BASE_REPOSITORY not in docker("image", "ls", "--format", "{{.Repository}}")


def based_on(small: Scratch, folder: Path, reference: str, manifest: str, config: str) -> Scratch:
    """Return the project with a base of a registry instead, and its lock."""
    shutil.copytree(small.folder, folder)
    scratch = Scratch.__new__(Scratch)
    scratch.folder, scratch.store, scratch.image = folder, small.store, IMAGE
    text = scratch.image_toml.read_text()
    table = f'[base]\nkind = "registry"\nreference = "{reference}"\n\n[base.packages]\n\n'
    scratch.image_toml.write_text(
        re.sub(r"\[base\].*?(?=\[python\])", lambda _: table, text, flags=re.DOTALL)
    )
    debian = Project(small.folder).locks(IMAGE).base
    lock = BaseLock(
        inputs=base_inputs(Project(folder).image(IMAGE).base),
        reference=reference,
        index=None,
        manifest=manifest,
        config=config,
        distribution="debian",
        installed_libc6="2.36-9",
        source_date_epoch=debian.source_date_epoch,
        packages=(),
    )
    (scratch.locks / "debian.json").unlink()
    (scratch.locks / "base.json").write_text(print_json_lock(lock))
    return scratch
