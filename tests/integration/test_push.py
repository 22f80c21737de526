"""`build --push` and the pull of `verify`, against a real registry server."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repro_image.adapters.engine import Engine
from repro_image.adapters.store import Store
from repro_image.core.oci import ZSTD_LAYER
from repro_image.steps.build import is_at_hand
from tests.pushing import LAYER_BYTES, Pushing, log_in, noise
from tests.registry import Registry, cutting_proxy, free_port, make_certificate, running_registry
from tests.scratch import IMAGE, docker, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

BASE = noise()  # a layer that all images of this module share


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Pushing]]:
    """Make a project, with one epoch that nobody has pushed yet, whose repository is in this registry."""
    made = []

    def make(host: str) -> Pushing:
        pushing = Pushing.make(tmp_path, host, repository=tmp_path.name.lower().replace("_", "-"))
        pushing.record(BASE, noise())
        made.append(pushing)
        return pushing

    yield make
    for pushing in made:
        pushing.forget()


@pytest.fixture
def pushing(registry: Registry, make: Callable[[str], Pushing]) -> Pushing:
    return make(registry.host)


def in_registry(registry: Registry, pushing: Pushing) -> dict[str, object]:
    """Return the manifest that the registry has under the epoch's tag."""
    name = pushing.reference.removeprefix(f"{registry.host}/")
    fields: dict[str, object] = json.loads(registry.get(name))
    return fields


def recorded_pushes(pushing: Pushing) -> list[str]:
    return [push.record.reference for push in pushing.latest.pushes]


def test_an_epoch_s_image_is_pushed_as_zstd_read_back_and_recorded(
    registry: Registry, pushing: Pushing
) -> None:
    run = pushing.push()
    assert run.code == 0, run.err
    found = in_registry(registry, pushing)
    layers = found["layers"]
    assert isinstance(layers, list)
    assert {layer["mediaType"] for layer in layers} == {ZSTD_LAYER}
    assert found["config"]["digest"] == pushing.latest.epoch.image.config  # type: ignore[index]
    digest = registry.digest(pushing.reference.removeprefix(f"{registry.host}/"))
    [push] = pushing.latest.pushes
    assert push.record.reference == f"{pushing.repository}@{digest}"
    assert push.record.manifest.compression == "zstd"
    assert push.record.size_bytes == sum(layer["size"] for layer in layers)
    told = run.json[0]["push"]
    assert (told["did"], told["layers"], told["record"]) == ("pushed", 2, push.digest)
    assert pushing.scratch.run("epochs", "check").code == 0


def test_with_the_packages_at_hand_bills_and_provenance_are_beside_the_image(
    registry: Registry, pushing: Pushing, store: Store
) -> None:
    assert pushing.push().code == 0
    name = pushing.reference.removeprefix(f"{registry.host}/")
    digest = registry.digest(name)
    assert pushing.scratch.run("fetch", IMAGE, store=store.root).code == 0
    run = pushing.scratch.run("build", IMAGE, "--push", store=store.root)
    assert run.code == 0, run.err
    repository = name.partition(":")[0]
    index = json.loads(registry.get(f"{repository}:{digest.replace(':', '-')}"))
    kinds = {entry["artifactType"]: entry["digest"] for entry in index["manifests"]}
    assert set(kinds) == {
        "application/vnd.cyclonedx+json",
        "application/spdx+json",
        "application/vnd.in-toto+json",
    }
    assert registry.digest(name) == digest
    again = pushing.scratch.run("build", IMAGE, "--push", store=store.root)
    assert again.code == 0
    assert "attached" not in again.err


def test_a_second_push_finds_it_there_and_writes_nothing(pushing: Pushing) -> None:
    assert pushing.push().code == 0
    before = pushing.scratch.recorded()
    run = pushing.push()
    assert run.json[0]["push"]["did"] == "there"
    assert run.json[0]["push"]["sent_bytes"] == 0
    assert pushing.scratch.recorded() == before


def test_the_next_epoch_sends_what_changed_also_from_a_machine_that_never_pushed(
    pushing: Pushing, tmp_path: Path
) -> None:
    assert pushing.push().code == 0
    pushing.record(BASE, noise())
    run = pushing.scratch.run("build", IMAGE, "--push", "--json", store=tmp_path / "another-store")
    assert run.code == 0, run.err
    told = run.json[0]["push"]
    assert told["layers"] == 1
    assert LAYER_BYTES < told["sent_bytes"] < LAYER_BYTES * 1.01
    assert "packed 1 of 2 layers" in run.err


def test_verify_elsewhere_pulls_by_digest_whatever_the_tag_names_there_now(
    registry: Registry, pushing: Pushing
) -> None:
    assert pushing.push().code == 0
    name = pushing.reference.removeprefix(f"{registry.host}/")
    moved = {**in_registry(registry, pushing), "layers": []}
    other = registry.put(name, moved)
    pushing.forget()
    run = pushing.verify()
    assert run.code == 11, run.err  # the image was there; the sample's class is not this machine's
    [reference] = recorded_pushes(pushing)
    assert f"pulled {reference}" in run.err
    found = Engine().image(pushing.reference)
    assert found is not None
    assert found.id == reference.rpartition("@")[2] != other
    again = pushing.verify()
    assert again.code == 11
    assert "pulled" not in again.err


def test_a_build_takes_the_pulled_image_for_the_epoch_s(pushing: Pushing) -> None:
    assert pushing.push().code == 0
    pushing.forget()
    pushing.verify()
    assert is_at_hand(pushing.latest, Engine())


def test_an_image_is_found_by_the_digest_that_the_registry_has(pushing: Pushing) -> None:
    assert pushing.push().code == 0
    pushing.forget()
    [reference] = recorded_pushes(pushing)
    assert pushing.scratch.run("verify", reference).code == 11
    assert pushing.scratch.run("verify", reference.rpartition("@")[2]).code == 11


def test_without_the_registry_verify_tells_why_and_how_to_rebuild(
    tmp_path: Path, make: Callable[[str], Pushing]
) -> None:
    with running_registry(tmp_path) as gone:
        pushing = make(gone.host)
        assert pushing.push().code == 0
    pushing.forget()
    run = pushing.verify()
    assert run.code == 5
    [reference] = recorded_pushes(pushing)
    assert f"is not on this machine, and {reference} could not be pulled: " in run.err
    assert "verify --rebuild" in run.err


def test_a_tag_that_is_another_image_in_the_registry_is_never_replaced(
    registry: Registry, pushing: Pushing
) -> None:
    assert pushing.push().code == 0
    name = pushing.reference.removeprefix(f"{registry.host}/")
    before = pushing.scratch.recorded()
    pushing.record(BASE, noise())
    taken = pushing.reference.removeprefix(f"{registry.host}/")
    other = registry.put(taken, json.loads(registry.get(name)))
    run = pushing.push()
    assert run.code == 5
    assert "the registry has another image under this tag" in run.err
    assert registry.digest(taken) == other
    assert not recorded_pushes(pushing)
    now = pushing.scratch.recorded()
    assert {path: now[path] for path in before} == before


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--push"], 3, "names no registry"),
        (["--push", "--no-golden"], 2, "--no-golden makes no epoch"),
    ],
)
def test_a_push_that_cannot_be_is_refused_before_anything_runs(
    tmp_path: Path, pushing: Pushing, options: list[str], code: int, told: str
) -> None:
    pushing.set("repository", "team")
    no_engine = {"DOCKER_HOST": f"unix://{tmp_path}/none"}
    run = pushing.scratch.run("build", IMAGE, *options, environment=no_engine)
    assert run.code == code
    assert told in run.err


def test_a_registry_with_users_is_pushed_to_and_pulled_from_as_docker_login_says(
    tmp_path: Path, make: Callable[[str], Pushing]
) -> None:
    with running_registry(tmp_path, with_users=True) as closed:
        pushing = make(closed.host)
        nobody = pushing.push(DOCKER_CONFIG=str(tmp_path / "none"))
        wrong = pushing.push(**log_in(tmp_path / "wrong", closed.host, "guessed"))
        for run in (nobody, wrong):
            assert run.code == 5
            assert "the registry asks for credentials (401)" in run.err
            assert f"docker login {closed.host}" in run.err
        assert "guessed" not in wrong.err
        assert not recorded_pushes(pushing)

        helper = tmp_path / "docker-credential-test"
        helper.write_text('#!/bin/sh\necho \'{"Username": "me", "Secret": "secret"}\'\n')
        helper.chmod(0o755)
        config = tmp_path / "helped"
        config.mkdir()
        (config / "config.json").write_text(json.dumps({"credHelpers": {closed.host: "test"}}))
        path = f"{tmp_path}:{os.environ['PATH']}"
        helped = pushing.push(DOCKER_CONFIG=str(config), PATH=path)
        assert helped.code == 0, helped.err

        pushing.forget()
        refused = pushing.verify(DOCKER_CONFIG=str(tmp_path / "none"))
        assert refused.code == 5
        assert "could not be pulled" in refused.err
        pulled = pushing.verify(**log_in(tmp_path / "right", closed.host, "secret"))
        assert pulled.code == 11, pulled.err


@pytest.fixture
def gateway() -> str:
    """An address of this machine that the engine does not take for insecure: that of its own bridge."""
    address = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
    assert not address.startswith("127.")
    return address


def test_a_self_signed_certificate_is_trusted_where_it_is_configured_and_nowhere_else(
    tmp_path: Path, gateway: str, make: Callable[[str], Pushing]
) -> None:
    right = make_certificate(tmp_path, "right", address=gateway)
    wrong = make_certificate(tmp_path, "wrong", address=gateway)
    with running_registry(tmp_path, address=gateway, certificate=right) as secure:
        pushing = make(secure.host)
        unknown = pushing.push()
        pushing.set("ca", str(wrong))
        mistaken = pushing.push()
        for run in (unknown, mistaken):
            assert run.code == 5
            assert "the server's certificate is not accepted" in run.err
            assert not recorded_pushes(pushing)
        pushing.set("ca", str(right))
        pushed = pushing.push()
        assert pushed.code == 0, pushed.err

        pushing.forget()
        engine_trusts = Path("/etc/docker/certs.d") / secure.host
        refused = pushing.verify()
        assert refused.code == 5
        assert "certificate" in refused.err
        assert f"{engine_trusts}/ca.crt" in refused.err
        engine_trusts.mkdir(parents=True)
        try:
            (engine_trusts / "ca.crt").write_text(wrong.read_text())
            assert pushing.verify().code == 5
            (engine_trusts / "ca.crt").write_text(right.read_text())
            pulled = pushing.verify()
        finally:
            (engine_trusts / "ca.crt").unlink()
            engine_trusts.rmdir()
        assert pulled.code == 11, pulled.err


def test_a_connection_that_is_cut_half_way_is_opened_again(
    registry: Registry, make: Callable[[str], Pushing]
) -> None:
    numbers: list[int] = []

    def cut(number: int) -> int | None:
        numbers.append(number)
        return LAYER_BYTES // 2 if number < 4 else None

    with cutting_proxy(registry.host, after_bytes=cut) as host:
        pushing = make(host)
        run = pushing.push()
        assert run.code == 0, run.err
        assert len(numbers) > 4
        assert len(recorded_pushes(pushing)) == 1
        pushing.forget()
        assert pushing.verify().code == 11


def test_a_registry_that_never_takes_the_bytes_is_given_up_and_nothing_is_recorded(
    registry: Registry, make: Callable[[str], Pushing]
) -> None:
    with cutting_proxy(registry.host, after_bytes=lambda _: LAYER_BYTES // 2) as host:
        pushing = make(host)
        before = pushing.scratch.recorded()
        run = pushing.push()
    assert run.code == 5
    assert "was not pushed: the connection" in run.err
    assert ", 5 times" in run.err
    assert run.seconds < 60
    assert pushing.scratch.recorded() == before


def test_a_push_that_is_killed_leaves_no_record_and_the_next_one_finishes(
    registry: Registry, pushing: Pushing
) -> None:
    before = pushing.scratch.recorded()
    with registry.silent():
        process = pushing.scratch.start("build", IMAGE, "--push")
        assert not wait_until(lambda: process.poll() is not None, seconds=2)
        process.kill()
        process.communicate()
    assert pushing.scratch.recorded() == before
    assert pushing.push().code == 0
    assert len(recorded_pushes(pushing)) == 1


def test_two_pushes_at_once_end_as_one(pushing: Pushing) -> None:
    runs = []
    threads = [threading.Thread(target=lambda: runs.append(pushing.push())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run.code for run in runs] == [0, 0], runs[0].err + runs[1].err
    assert len(recorded_pushes(pushing)) == 1
    assert pushing.scratch.run("epochs", "check").code == 0


def test_a_full_registry_is_told_and_nothing_is_recorded(
    tmp_path: Path, make: Callable[[str], Pushing]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", full], check=True)
    try:
        with running_registry(full) as registry:
            pushing = make(registry.host)
            before = pushing.scratch.recorded()
            run = pushing.push()
            pushing.forget()
    finally:
        subprocess.run(["umount", full], check=True)
    assert run.code == 5
    assert "was not pushed: the server answers 500, " in run.err
    assert "space" in run.err
    assert pushing.scratch.recorded() == before


def test_a_registry_that_is_not_there_is_told(pushing: Pushing) -> None:
    pushing.set("repository", f"127.0.0.1:{free_port()}/team")
    run = pushing.push()
    assert run.code == 5
    assert "the connection failed" in run.err


_PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def test_the_client_stays_small_however_large_a_layer_is(pushing: Pushing) -> None:
    pushing.record(os.urandom(2**20) * 260)
    run = pushing.scratch.run("build", IMAGE, "--push", prefix=(sys.executable, "-c", _PEAK))
    assert run.code == 0, run.err
    assert int(run.out) < 200 * 1024  # KiB
