"""runner/layer_writer.py: an archive that readers understand, the same bytes each time."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro_image.runner.layer_writer import RefusedError, header, run, write_layer

EPOCH = 1_795_140_670
_part = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=90)
_paths = st.lists(_part.filter(lambda part: part not in (".", "..")), min_size=1, max_size=4).map("/".join)


@given(_paths, st.integers(0, 2**33 - 1), st.sampled_from([0o644, 0o755]))
def test_a_header_is_read_back_as_it_was_written(path: str, size: int, mode: int) -> None:
    archive = tarfile.open(fileobj=io.BytesIO(header(path, mode, size, EPOCH, b"0")))  # noqa: SIM115
    member = archive.next()
    assert member is not None
    assert (member.name, member.size, member.mode, member.mtime) == (path, size, mode, EPOCH)
    assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")


@given(_paths)
def test_a_folders_header_is_read_back(path: str) -> None:
    member = tarfile.open(fileobj=io.BytesIO(header(path + "/", 0o755, 0, EPOCH, b"5"))).next()  # noqa: SIM115
    assert member is not None
    assert (member.name, member.isdir()) == (path, True)


@pytest.mark.parametrize(
    ("path", "digest"),
    [
        # Go's archive/tar writes the same: tests/integration/test_package_layers.py compares.
        ("opt/env/bin/vllm", "c13e285215181ea0"),
        ("opt/env/" + "a" * 60 + "/" + "b" * 60, "51829b322e08207d"),
        ("opt/env/" + "a" * 120 + ".py", "cd3913a726c1b41e"),
        ("opt/env/caf\u00e9.txt", "3bfce6877bbb2bf2"),
    ],
)
def test_headers_keep_their_bytes(path: str, digest: str) -> None:
    assert hashlib.sha256(header(path, 0o644, 5, EPOCH, b"0")).hexdigest()[:16] == digest


def make_tree(root: Path) -> None:
    for path, content in {"a/z": b"1", "a.b": b"2", "a/b/c": b"x" * 3_000_000, "B": b""}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    (root / "a.b").chmod(0o755)


def test_a_layer_lists_folders_before_their_files_sorted_by_name(tmp_path: Path) -> None:
    make_tree(tmp_path / "root")
    digest, size = write_layer(str(tmp_path / "root"), str(tmp_path / "layer.tar"), EPOCH)
    data = (tmp_path / "layer.tar").read_bytes()
    assert (digest, size) == (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    with tarfile.open(tmp_path / "layer.tar") as archive:
        assert archive.getnames() == ["B", "a", "a/b", "a/b/c", "a/z", "a.b"]
        assert {member.mtime for member in archive} == {EPOCH}
        assert archive.getmember("a.b").mode == 0o755
        big = archive.extractfile("a/b/c")
        assert big is not None
        assert big.read() == b"x" * 3_000_000


def test_the_same_files_give_the_same_layer_whenever_and_whatever_else_they_are(tmp_path: Path) -> None:
    digests = set()
    for name, moment in (("one", 1), ("two", 2**31)):
        make_tree(tmp_path / name)
        for path in (tmp_path / name).rglob("*"):
            os.utime(path, (moment, moment))
        digests.add(write_layer(str(tmp_path / name), str(tmp_path / "layer.tar"), EPOCH))
    assert len(digests) == 1


def test_what_is_neither_file_nor_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to("/etc/passwd")
    with pytest.raises(RefusedError, match="link is neither a file nor a folder"):
        write_layer(str(tmp_path / "root"), str(tmp_path / "layer.tar"), EPOCH)


def test_a_command_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(RefusedError, match="exit code 3\nno such wheel"):
        run("echo no such wheel >&2; exit 3", "1")


def test_a_command_sees_the_epoch(tmp_path: Path) -> None:
    run(f'echo "$SOURCE_DATE_EPOCH" >{tmp_path}/epoch', "7")
    assert (tmp_path / "epoch").read_text() == "7\n"
