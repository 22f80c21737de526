"""The hub's real client against a server on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from repro_image.adapters.package_index import PackageIndex
from repro_image.adapters.pip_settings import PipSettings
from repro_image.adapters.store import Store
from repro_image.adapters.web import Limits, Web
from repro_image.core.lockfile import HubLock, ModelFile, ModelLock, parse_model_lock, print_json_lock
from repro_image.core.project import HubModel
from repro_image.core.reference import sha256_digest
from repro_image.errors import (
    DownloadError,
    HubAccessError,
    HubFileGoneError,
    NoHubModelError,
    NoHubRevisionError,
    RateLimitError,
    RefusedError,
    ReproImageError,
    UnsafeModelError,
    WrongContentError,
)
from repro_image.steps.fetch import fetch_model
from repro_image.steps.lock_model import lock_model
from tests.hub_server import FILES, WEIGHTS, Hub, Repository, configured_hub
from tests.unit.supply_samples import Notes
from tests.unit.web_server import cut, ranged, status, whole

NAME = "team/tiny"
TOKEN = "hf_aSecretOfTheUser"
TAKEN = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with configured_hub(monkeypatch, tmp_path) as found:
        found.commit(NAME, FILES)
        yield found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def web() -> Web:
    return Web(PipSettings(timeout_s=5.0), limits=Limits(attempts=3, first_wait_s=0.01, longest_wait_s=0.05))


def lock(store: Store, old: ModelLock | None = None, *, upgrade: bool = False, **changes: Any) -> HubLock:
    fields = {"repository": NAME, "revision": "main", "license": "Apache-2.0"} | changes
    index = PackageIndex(web(), indexes={})
    locked = lock_model(
        HubModel(**fields), old, image="x", upgrade=upgrade, index=index, store=store, reporter=Notes()
    )
    assert isinstance(locked, HubLock)
    return locked


def fetch(lock: HubLock, store: Store) -> tuple[int, int]:
    return fetch_model(lock, image="x", store=store, web=web(), reporter=Notes())


def test_the_lock_names_the_commit_and_each_file_by_hash_and_no_weight_was_read(
    hub: Hub, store: Store
) -> None:
    locked = lock(store)
    assert (locked.repository, locked.license) == (NAME, "Apache-2.0")
    assert locked.commit == hub.repositories[NAME].revisions["main"]
    assert locked.files == tuple(
        ModelFile(path=path, sha256=sha256_digest(FILES[path]), size_bytes=len(FILES[path])) for path in TAKEN
    )
    assert not hub.asked("model.safetensors")
    assert parse_model_lock(print_json_lock(locked), path="model.json", image="x") == locked


def test_a_fetch_brings_what_is_missing_by_commit_and_hash(hub: Hub, store: Store) -> None:
    locked = lock(store)
    asked = len(hub.front.requests)
    hub.commit(NAME, {**FILES, "model.safetensors": b"newer"})  # the branch has moved on
    assert fetch(locked, store) == (2, len(WEIGHTS) + len(FILES["tokenizer.json"]))  # small files are there
    for file in locked.files:
        store.verify(file.sha256)
    assert fetch(locked, store) == (0, 0)
    assert sorted(path for path, _ in hub.front.requests[asked:]) == [
        f"/{NAME}/resolve/{locked.commit}/{path}" for path in ("model.safetensors", "tokenizer.json")
    ]


def test_a_branch_that_moved_is_followed_by_an_upgrade_only(hub: Hub, store: Store) -> None:
    old = lock(store)
    newest = hub.commit(NAME, {**FILES, "model.safetensors": b"newer"})
    asked = len(hub.front.requests)
    assert lock(store, old) is old
    assert len(hub.front.requests) == asked
    upgraded = lock(store, old, upgrade=True)
    assert (upgraded.commit, upgraded.inputs) == (newest, old.inputs)
    assert upgraded.digest != old.digest


def test_an_upgrade_with_nothing_newer_gives_an_equal_lock(hub: Hub, store: Store) -> None:
    old = lock(store)
    assert lock(store, old, upgrade=True) == old


def test_a_commit_is_locked_as_it_is_and_not_asked_for_again(hub: Hub, store: Store) -> None:
    first = hub.repositories[NAME].revisions["main"]
    hub.commit(NAME, {**FILES, "README.md": b"newer"})
    old = lock(store, revision=first)
    assert old.commit == first
    asked = len(hub.front.requests)
    assert lock(store, old, upgrade=True, revision=first) is old
    assert len(hub.front.requests) == asked


def test_another_model_table_makes_the_lock_again(hub: Hub, store: Store) -> None:
    hub.commit(NAME, FILES, branch="v1")
    old = lock(store)
    assert lock(store, old, revision="v1").inputs != old.inputs
    assert [file.path for file in lock(store, old, files=("*.json", "*.safetensors")).files] == list(TAKEN)


def test_a_long_listing_is_read_to_its_last_page(hub: Hub, store: Store) -> None:
    hub.page = 2
    assert [file.path for file in lock(store).files] == list(TAKEN)
    assert len(hub.asked("/tree/")) == 3


@pytest.mark.parametrize("count", [20_001, 10_001])
def test_a_listing_of_too_many_files_is_refused(hub: Hub, store: Store, count: int) -> None:
    entry = {"type": "file", "size": 1, "oid": "0" * 40}
    hub.listing = lambda entries: [*entries, *({**entry, "path": f"{n}.txt"} for n in range(count))]
    with pytest.raises(UnsafeModelError, match="more than 10,000 files"):
        lock(store)
    assert not hub.asked("resolve")


def test_a_listing_that_never_ends_is_given_up(hub: Hub, store: Store) -> None:
    hub.listing = lambda entries: [{"type": "directory", "path": "d", "oid": "0" * 40}] * 100_000
    with pytest.raises(DownloadError, match="it does not end"):
        lock(store)


def with_entry(**changes: object) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Change the listing's entry of the weights."""

    def change(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**e, **changes} if e["path"] == "model.safetensors" else e for e in entries]

    return change


@pytest.mark.parametrize(
    "listing",
    [
        with_entry(size=-1),
        with_entry(size="many"),
        with_entry(lfs={"oid": "0" * 64, "size": 1, "pointerSize": 1}),
        with_entry(lfs={"oid": "../" * 21, "size": len(WEIGHTS), "pointerSize": 1}),
        with_entry(lfs=None, oid="no identifier"),
        with_entry(path=7),
        with_entry(path="config.json"),
        with_entry(type="file", oid=None, lfs=None),
        lambda entries: ["text"],
    ],
    ids=range(9),
)
def test_a_listing_that_no_hub_would_write_is_refused_and_nothing_downloaded(
    hub: Hub, store: Store, listing: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> None:
    hub.listing = listing
    with pytest.raises(DownloadError, match="the hub is not understood") as caught:
        lock(store)
    assert caught.value.exit_code == 5
    assert not hub.asked("resolve")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"../x.json": b"{}"}, "the path '../x.json' could lead out of its folder"),
        ({"model.safetensors": None, "pytorch_model.bin": b"x"}, "its weights are pickles"),
        ({"model.safetensors": None}, "there are no weights in safetensors"),
        ({"config.json": None}, "there is no config.json"),
        ({"tokenizer.json": None}, "there is no tokenizer"),
    ],
)
def test_a_repository_is_refused_by_its_listing_alone(
    hub: Hub, store: Store, files: Mapping[str, bytes | None], reason: str
) -> None:
    planted = {path: data for path, data in {**FILES, **files}.items() if data is not None}
    commit = hub.commit(NAME, planted)
    with pytest.raises(UnsafeModelError) as caught:
        lock(store)
    assert caught.value.exit_code == 3
    assert caught.value.reason.startswith(reason)
    assert caught.value.path == f"{NAME}@{commit}"
    assert not hub.asked("resolve")


@pytest.mark.parametrize(
    ("path", "data", "reason"),
    [
        ("config.json", b'{"auto_map": {"AutoModel": "m.M"}}', "`auto_map` asks to run the model's own code"),
        ("tokenizer_config.json", b'{"auto_map": {}}', "`auto_map` asks to run the model's own code"),
        ("generation_config.json", b"{", "not JSON"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "model-1.safetensors"}}',
            "it names files that are not there: model-1.safetensors",
        ),
    ],
)
def test_a_repository_is_refused_by_its_settings_before_a_weight_is_read(
    hub: Hub, store: Store, path: str, data: bytes, reason: str
) -> None:
    commit = hub.commit(NAME, {**FILES, path: data})
    with pytest.raises(UnsafeModelError) as caught:
        lock(store, files=("*.json", "*.safetensors"))
    assert caught.value.path == f"{NAME}@{commit}/{path}"
    assert caught.value.reason.startswith(reason)
    assert not hub.asked("model.safetensors?")


def test_python_files_are_not_taken_and_refused_where_a_pattern_takes_them(hub: Hub, store: Store) -> None:
    hub.commit(NAME, {**FILES, "modeling_tiny.py": b"import os"})
    assert [file.path for file in lock(store).files] == list(TAKEN)
    with pytest.raises(UnsafeModelError, match="run code when they are loaded"):
        lock(store, files=("*.json", "*.safetensors", "*.py"))


def failing(act: Callable[[], object], kind: type[ReproImageError]) -> ReproImageError:
    with pytest.raises(kind) as caught:
        act()
    assert type(caught.value) is kind
    assert caught.value.exit_code == 5
    assert TOKEN not in str(caught.value)
    return caught.value


def test_a_repository_and_a_revision_that_are_not_there_are_told_apart(hub: Hub, store: Store) -> None:
    assert "team/other" in str(failing(lambda: lock(store, repository="team/other"), NoHubModelError))
    assert "'v9'" in str(failing(lambda: lock(store, revision="v9"), NoHubRevisionError))
    assert "'" + "0" * 40 in str(failing(lambda: lock(store, revision="0" * 40), NoHubRevisionError))


def test_another_commit_than_the_one_asked_for_is_refused(hub: Hub, store: Store) -> None:
    hub.repositories[NAME].revisions["1" * 40] = hub.repositories[NAME].revisions["main"]
    assert "it names the commit" in str(failing(lambda: lock(store, revision="1" * 40), DownloadError))


@pytest.mark.parametrize("is_gated", [True, False])
def test_a_gated_model_says_how_to_get_access(hub: Hub, store: Store, is_gated: bool) -> None:
    hub.repositories[NAME].token = TOKEN
    hub.repositories[NAME].is_gated = is_gated
    error = failing(lambda: lock(store), HubAccessError if is_gated else NoHubModelError)
    assert "HF_TOKEN" in error.fix
    assert not is_gated or "accept the model's licence" in error.fix


def test_the_users_token_opens_a_gated_model_and_goes_to_the_hub_only(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[NAME].token = TOKEN
    hub.repositories[NAME].is_gated = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    locked = lock(store)
    fetch(locked, store)
    assert set(hub.front.headers("Authorization")) == {f"Bearer {TOKEN}"}
    assert hub.back.requests
    assert set(hub.back.headers("Authorization")) == {None}
    text = print_json_lock(locked)
    assert TOKEN not in text
    assert "127.0.0.1" not in text


def test_a_token_that_a_login_left_in_its_file_is_used(hub: Hub, store: Store) -> None:
    from huggingface_hub import constants

    hub.repositories[NAME].token = TOKEN
    Path(constants.HF_TOKEN_PATH).write_text(f"{TOKEN}\n")
    assert lock(store).files


def test_a_token_that_is_not_accepted_later_is_told_by_fetch(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = lock(store)
    hub.repositories[NAME].token = "another"
    hub.repositories[NAME].is_gated = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    failing(lambda: fetch(locked, store), HubAccessError)


@pytest.mark.parametrize("token", ["hf_é", "hf_a b", "hf_\x01"])
def test_a_malformed_token_is_refused_and_not_told(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    error = failing(lambda: lock(store), RefusedError)
    assert token not in str(error)
    assert not hub.front.requests


def test_a_hub_that_is_asked_too_often_says_so_after_bounded_patience(hub: Hub, store: Store) -> None:
    path = f"/api/models/{NAME}/revision/main"
    hub.front.answers[path] = [status(429, Retry_After="100000")]
    error = failing(lambda: lock(store), RateLimitError)
    assert "429, 3 times" in str(error)
    assert len(hub.asked(path)) == 3


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub: Hub, store: Store) -> None:
    path = f"/api/models/{NAME}/revision/main"
    hub.front.answers[path] = [status(503), cut(b"x" * 100, 10), hub.answer]
    assert lock(store).files


@pytest.mark.parametrize("code", [400, 418, 500])
def test_an_answer_that_means_nothing_is_told_with_its_number(hub: Hub, store: Store, code: int) -> None:
    hub.front.answers[f"/api/models/{NAME}/revision/main"] = [status(code)]
    assert str(code) in str(failing(lambda: lock(store), DownloadError))


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[1]", b"null", b'{"sha": "main"}', b'{"id": 1, "sha": 2}']
)
def test_an_answer_that_is_not_a_hubs_is_no_traceback(hub: Hub, store: Store, body: bytes) -> None:
    commit = hub.repositories[NAME].revisions["main"]
    tree = f"/api/models/{NAME}/tree/{commit}?recursive=true&expand=false"
    for path in (tree, f"/api/models/{NAME}/revision/main"):
        hub.front.answers[path] = [whole(body, content_type="application/json")]
        assert "the hub is not understood" in str(failing(lambda: lock(store), DownloadError))


def test_no_network_is_told_as_such(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://user:password@127.0.0.1:1")
    error = failing(lambda: lock(store), DownloadError)
    assert "the connection failed" in error.what
    assert "password" not in str(error)


def test_a_hub_that_the_user_turned_off_is_not_asked(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert failing(lambda: lock(store), DownloadError).where == "HF_HUB_OFFLINE"
    assert not hub.front.requests


def test_a_small_file_that_is_not_the_listed_one_is_refused(hub: Hub, store: Store) -> None:
    hub.wrong["config.json"] = FILES["config.json"].replace(b"Llama", b"Other")
    error = failing(lambda: lock(store), DownloadError)
    assert "config.json of team/tiny" in error.what
    assert "it sent" in error.what


def test_a_weight_with_other_bytes_is_refused_and_not_kept(hub: Hub, store: Store) -> None:
    locked = lock(store)
    hub.wrong["model.safetensors"] = WEIGHTS[:-1] + b"?"
    failing(lambda: fetch(locked, store), WrongContentError)
    assert not store.path(sha256_digest(WEIGHTS)).exists()


def test_a_cut_connection_is_taken_up_where_it_ended(hub: Hub, store: Store) -> None:
    locked = lock(store)
    hub.large(WEIGHTS, cut(WEIGHTS, 10_000), ranged(WEIGHTS))
    fetch(locked, store)
    store.verify(sha256_digest(WEIGHTS))
    ranges = [
        headers.get("range") for path, headers in hub.back.requests if sha256_digest(WEIGHTS)[7:] in path
    ]
    assert ranges == [None, "bytes=10000-"]


def test_a_commit_that_the_hub_no_longer_has_says_how_to_go_on(hub: Hub, store: Store) -> None:
    locked = lock(store)
    hub.repositories[NAME] = Repository()
    error = failing(lambda: fetch(locked, store), HubFileGoneError)
    assert locked.commit in error.what
    assert "repro-image lock x --upgrade" in error.fix


def test_the_clients_own_download_works_against_the_same_server(hub: Hub, tmp_path: Path) -> None:
    """So the server speaks what the client asks, and HF_ENDPOINT and HF_TOKEN mean the same to both."""
    hub.repositories[NAME].token = TOKEN
    commit = hub.repositories[NAME].revisions["main"]
    program = f"""
import json
from huggingface_hub import snapshot_download
from repro_image.adapters.model_hub import ModelHub
from repro_image.adapters.pip_settings import PipSettings
from repro_image.adapters.web import Web
print(snapshot_download({NAME!r}, revision="main"))
ours = ModelHub(Web(PipSettings()))
snapshot = ours.snapshot({NAME!r}, "main")
print(snapshot.commit, ours.address({NAME!r}, snapshot.commit, "config.json"))
print(json.dumps(sorted(snapshot.files)))
"""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    folder, ours, files = ran.stdout.splitlines()
    assert {path: (Path(folder) / path).read_bytes() for path in FILES} == FILES
    assert ours == f"{commit} {hub.url}/{NAME}/resolve/{commit}/config.json"
    assert json.loads(files) == sorted(FILES)
