import errno
import fcntl
import multiprocessing
import os
import shutil
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from repro_image.adapters.store import Store
from repro_image.core.reference import sha256_digest
from repro_image.errors import CorruptFileError, DiskFullError, MissingFileError, StoreError
from tests.scratch import wait_until

DATA = b"abc" * 1000
DIGEST = sha256_digest(DATA)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def umask_077() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def test_an_added_file_lies_under_its_digest(store: Store, source: Path) -> None:
    assert store.add(source) == DIGEST
    path = store.path(DIGEST)
    assert path.read_bytes() == DATA
    assert path == store.root / "sha256" / DIGEST[7:9] / DIGEST[9:]
    assert source.exists()


def test_a_stored_file_is_readable_by_all_whatever_the_umask(
    store: Store, source: Path, umask_077: None
) -> None:
    store.add(source)
    assert store.path(DIGEST).stat().st_mode & 0o777 == 0o644
    assert store.path(DIGEST).parent.stat().st_mode & 0o777 == 0o755


def test_a_file_with_another_digest_is_refused_and_leaves_nothing(store: Store, source: Path) -> None:
    other = sha256_digest(b"other")
    with pytest.raises(CorruptFileError) as caught:
        store.add(source, other)
    assert (caught.value.expected, caught.value.found) == (other, DIGEST)
    assert files_below(store.root) == []


def test_adding_twice_is_the_same_as_once(store: Store, source: Path) -> None:
    assert store.add(source) == store.add(source, DIGEST)
    assert files_below(store.root) == [store.path(DIGEST)]


def test_has_wants_the_size_too(store: Store, source: Path) -> None:
    assert not store.has(DIGEST, len(DATA))
    store.add(source)
    assert store.has(DIGEST, len(DATA))
    assert not store.has(DIGEST, len(DATA) + 1)


def test_a_flipped_bit_is_found_by_verify(store: Store, source: Path) -> None:
    store.add(source)
    store.verify(DIGEST)
    store.path(DIGEST).write_bytes(b"x" + DATA[1:])
    with pytest.raises(CorruptFileError, match="a stored file is corrupt: expected sha256:") as caught:
        store.verify(DIGEST)
    assert caught.value.exit_code == 3


def test_a_missing_file_is_named_with_its_fix(store: Store) -> None:
    with pytest.raises(MissingFileError, match="get it with `repro-image fetch`"):
        store.verify(DIGEST)


def test_what_is_no_digest_is_never_made_into_a_path(store: Store) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        store.path("sha256:../../etc/passwd")
    with pytest.raises(ValueError, match="not a digest"):
        store.partial(DIGEST + "\n")


def test_a_workspace_is_removed_also_when_its_body_fails(store: Store) -> None:
    def fail_inside() -> None:
        with store.workspace() as folder:
            seen.append(folder)
            (folder / "deep" / "er").mkdir(parents=True)
            raise ZeroDivisionError

    seen: list[Path] = []
    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert not seen[0].exists()


def test_the_leftover_of_a_killed_run_is_removed_by_the_next(store: Store) -> None:
    code = (
        "import os, sys, signal, pathlib; from repro_image.adapters.store import Store\n"
        "with Store(pathlib.Path(sys.argv[1])).workspace() as folder:\n"
        "    (folder / 'half').write_bytes(b'half'); print(folder, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.root)], capture_output=True, text=True, check=False
    )
    left = Path(done.stdout.strip())
    assert left.is_dir()
    with store.workspace() as folder:
        assert folder.exists()
        assert not left.exists()


def test_a_workspace_in_use_is_left_alone(store: Store) -> None:
    with store.workspace() as first:
        with Store(store.root).workspace() as second:
            assert first != second
            assert first.is_dir()
        assert first.is_dir()


def add_many(root: Path, source: Path) -> None:
    for _ in range(20):
        Store(root).add(source)


def test_writers_at_the_same_time_do_not_disturb_each_other(store: Store, source: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=add_many, args=(store.root, source)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert files_below(store.root) == [store.path(DIGEST)]


def test_files_are_laid_out_under_their_names(store: Store, source: Path, tmp_path: Path) -> None:
    store.add(source)
    folder = tmp_path / "laid-out"
    store.lay_out(folder, {"a.whl": DIGEST, "sub/b.whl": DIGEST})
    assert (folder / "a.whl").read_bytes() == (folder / "sub" / "b.whl").read_bytes() == DATA
    assert (folder / "a.whl").samefile(store.path(DIGEST))


def test_where_links_cannot_be_made_files_are_copied(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    store.add(source)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    store.lay_out(tmp_path / "laid-out", {"a.whl": DIGEST})
    copy = tmp_path / "laid-out" / "a.whl"
    assert copy.read_bytes() == DATA
    assert not copy.samefile(store.path(DIGEST))


@pytest.mark.parametrize("name", ["../x", "/etc/x", "", "a/../../x"])
def test_a_name_that_leaves_the_folder_is_refused(
    store: Store, source: Path, tmp_path: Path, name: str
) -> None:
    store.add(source)
    with pytest.raises(ValueError, match="not a relative path"):
        store.lay_out(tmp_path / "laid-out", {name: DIGEST})


def test_laying_out_what_is_not_there_names_the_file(store: Store, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"a\.whl is not in the store"):
        store.lay_out(tmp_path / "laid-out", {"a.whl": DIGEST})


def test_a_full_disk_names_what_was_needed_and_leaves_nothing(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(reader: object, writer: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("repro_image.adapters.store._copy", full)
    with pytest.raises(DiskFullError, match="the disk is full: 3,000 bytes needed") as caught:
        store.add(source)
    assert caught.value.exit_code == 5
    assert files_below(store.root) == []


def test_a_file_where_the_store_should_be_is_named(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="the store cannot be written") as caught:
        Store(tmp_path / "file").add(source)
    assert caught.value.exit_code == 5


def test_free_bytes_are_known_before_the_store_exists(store: Store) -> None:
    assert store.free_bytes() > 0
    assert not store.root.exists()


def test_a_held_lock_is_the_kernels_so_no_stale_file_blocks_the_next(store: Store) -> None:
    with store.workspace() as folder, folder.joinpath("x").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    shutil.rmtree(store.root / "tmp")
    with store.workspace() as folder:
        assert folder.is_dir()


def test_a_default_acl_above_the_store_gives_its_workspaces_no_modes(tmp_path: Path) -> None:
    entries = [(0x01, 7), (0x04, 7), (0x10, 7), (0x20, 7)]  # user, group, mask, others: everything
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, 0xFFFFFFFF) for tag, bits in entries)
    (tmp_path / "store/tmp").mkdir(parents=True)
    os.setxattr(tmp_path / "store/tmp", "system.posix_acl_default", acl)
    with Store(tmp_path / "store").workspace() as folder:
        (folder / "file").touch()
        assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o666 & ~current_umask()


def current_umask() -> int:
    os.umask(found := os.umask(0))
    return found


def test_one_process_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    store = Store(tmp_path)
    order: list[str] = []

    def second() -> None:
        with Store(tmp_path).locked("a", on_wait=lambda: order.append("waits")):
            order.append("second")

    other = threading.Thread(target=second)
    with store.locked("a"):
        other.start()
        assert wait_until(lambda: order == ["waits"], seconds=10)
        with store.locked("b"):
            order.append("first")
    other.join(10)
    assert order == ["waits", "first", "second"]
