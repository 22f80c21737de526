"""adapters/layer_archive.py, layer_scan.py: what is read off real archives, and what is refused."""

import contextlib
import hashlib
import io
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro_image.adapters import layer_archive, layer_scan
from repro_image.adapters.layer_archive import read_headers, read_layer
from repro_image.core.image_files import Kind, Layer
from repro_image.errors import BrokenImageError
from tests.unit.made_images import (
    File,
    digest_of,
    folder,
    gzipped,
    hard_link,
    layer,
    link,
    zstandarded,
)


def stream(data: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(data))


def read(data: bytes) -> Layer:
    return read_layer(stream(data), digest=digest_of(data), image="test")


def refused(data: bytes) -> str:
    with pytest.raises(BrokenImageError) as caught:
        read(data)
    return str(caught.value)


def header(type_: bytes, size: int, name: bytes = b"x") -> bytes:
    """Return one ustar header whose size is what it claims, in base 256 where that is large."""
    member = tarfile.TarInfo(name.decode())
    member.type, member.size = type_, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("pack", [bytes, gzipped, zstandarded])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_an_archive_is_read_alike(pack: Any, form: int) -> None:
    name = "/".join(["d" * 50] * 4)
    data = layer(folder("./d/"), File("./d/f", b"x" * 3_000_000), File(name, b"y"), form=form)
    found = read(pack(data))
    assert (found.diff_id, found.size_bytes) == (digest_of(data), len(data))
    assert list(found.entries) == ["d", "d/f", name]
    assert found.entries["d/f"].sha256 == bytes.fromhex(digest_of(b"x" * 3_000_000)[7:])


@pytest.mark.parametrize("pack", [bytes, gzipped, zstandarded])
def test_headers_alone_tell_the_same_but_contents(pack: Any, tmp_path: Path) -> None:
    status = File("var/lib/dpkg/status", b"Package: a")
    data = layer(File("f", b"x" * 99999), hard_link("g", "f"), File(".wh.h"), status)
    (tmp_path / "layer").write_bytes(pack(data))
    with (tmp_path / "layer").open("rb") as file:
        found = read_headers(file, diff_id=digest_of(data), image="test")
    whole = read(data)
    assert (found.diff_id, found.size_bytes, found.removed) == (
        whole.diff_id,
        whole.size_bytes,
        whole.removed,
    )
    assert {path: (at.kind, at.size) for path, at in found.entries.items()} == {
        path: (at.kind, at.size) for path, at in whole.entries.items()
    }
    assert found.entries["f"].sha256 is None
    assert found.dpkg_status == whole.dpkg_status == "Package: a"


def test_every_kind_of_entry_is_told() -> None:
    device = File("null", type=tarfile.CHRTYPE)
    data = layer(
        folder("d"), link("l", "../x"), hard_link("h", "d"), device, File("p", type=tarfile.FIFOTYPE)
    )
    found = read(data).entries
    assert {path: (at.kind, at.link) for path, at in found.items()} == {
        "d": (Kind.FOLDER, ""),
        "l": (Kind.LINK, "../x"),
        "h": (Kind.HARD_LINK, "d"),
        "null": (Kind.CHARACTER_DEVICE, "0:0"),
        "p": (Kind.PIPE, ""),
    }


def test_paths_stay_below_the_root() -> None:
    names = ("/abs", "../../up", "a/../../b", "./c//d/", ".")
    found = read(layer(*(File(name) for name in names)))
    assert list(found.entries) == ["abs", "up", "b", "c/d", ""]


def test_whiteouts_are_no_files() -> None:
    found = read(layer(File("d/.wh.a"), File(".wh.b"), File("e/.wh..wh..opq"), File("d/.where")))
    assert found.removed == {"d/a", "b"}
    assert found.opaque == {"e"}
    assert list(found.entries) == ["d/.where"]


def test_times_keep_their_nanoseconds() -> None:
    headers = ({"mtime": "1795140670.123456789"}, {"mtime": "-1.5"})
    found = read(layer(*(File(str(number), headers=each) for number, each in enumerate(headers))))
    times = [at.mtime_ns for at in found.entries.values()]
    assert times == [1_795_140_670_123_456_789, -1_500_000_000]


@pytest.mark.parametrize("time", ["nan", "inf", "1e300", "9" * 12])
def test_a_time_that_is_none_is_refused(time: str) -> None:
    assert f"the time of 'f' is '{time}'" in refused(layer(File("f", headers={"mtime": time})))


def test_attributes_are_sorted_and_long_ones_hashed() -> None:
    short = {"SCHILY.xattr.user.b": "2", "SCHILY.xattr.user.a": "1", "comment": "no attribute"}
    found = read(layer(File("s", headers=short), File("l", headers={"SCHILY.xattr.user.x": "y" * 999})))
    assert found.entries["s"].xattrs == "user.a=31 user.b=32"
    assert found.entries["l"].xattrs.startswith("sha256:")


def test_content_that_is_not_its_digest_is_refused() -> None:
    data = layer(File("f"))
    with pytest.raises(BrokenImageError, match="its content is sha256:"):
        read_layer(stream(data), digest=digest_of(b"other"), image="test")


def test_bytes_after_the_archive_belong_to_the_digests() -> None:
    data = layer(File("f")) + b"more" * 5000
    assert (read(data).diff_id, read(gzipped(data)).diff_id) == (digest_of(data),) * 2


@pytest.mark.parametrize(
    ("type_", "size"),
    [
        (tarfile.XHDTYPE, 2**40),
        (tarfile.XGLTYPE, 2**40),
        (tarfile.GNUTYPE_LONGNAME, 2**40),
        (tarfile.GNUTYPE_LONGLINK, 2**33),
        (tarfile.SOLARIS_XHDTYPE, 2**40),
    ],
)
def test_a_header_that_claims_much_is_refused_before_it_costs_memory(type_: bytes, size: int) -> None:
    data = header(type_, size) + bytes(20 * 2**20)
    tracemalloc.start()
    try:
        assert f"claims {size} bytes" in refused(data)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_a_file_costs_little_memory() -> None:
    data = layer(*(File(f"folder/{number:05}") for number in range(10_000)), form=tarfile.USTAR_FORMAT)
    tracemalloc.start()
    try:
        assert len(read(data).entries) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 10_000 * 400 + 4 * 2**20
    finally:
        tracemalloc.stop()


def test_a_negative_size_is_refused() -> None:
    data = bytearray(header(tarfile.REGTYPE, 0))
    data[124:136] = b"\xff" * 12
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    assert "claims -1 bytes" in refused(bytes(data) + bytes(1024))


def test_sparse_files_are_refused() -> None:
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**60)}
    old = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1"}
    assert "is sparse" in refused(layer(File("f", b"1\n0\n1\n", headers=headers)))
    assert "is sparse" in refused(layer(File("f", b"1", headers=old)))
    assert "is sparse" in refused(header(tarfile.GNUTYPE_SPARSE, 0) + bytes(1024))


def test_a_long_chain_of_headers_is_refused() -> None:
    pax = header(tarfile.XHDTYPE, 0)
    assert "recursion" in refused(pax * 5000)


def test_a_file_longer_than_its_archive_is_refused() -> None:
    data = header(tarfile.REGTYPE, 2**30) + bytes(1000)
    assert "end of data" in refused(data)


@pytest.mark.parametrize("pack", [gzipped, zstandarded])
def test_a_stream_that_is_cut_short_is_refused(pack: Any) -> None:
    noise = b"".join(hashlib.sha256(bytes([n // 256, n % 256])).digest() for n in range(6000))
    assert refused(pack(layer(File("f", noise)))[:-70_000])


def test_what_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_archive, "MAX_LAYER_BYTES", 10 * 2**20)
    bomb = gzipped(bytes(11 * 2**20))
    assert "unpacks to more than" in refused(bomb)
    whole = layer(File("f", bytes(11 * 2**20)))
    assert "unpacks to more than" in refused(zstandarded(whole))


def test_too_many_entries_and_too_long_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "longer than 4096" in refused(layer(File("a/" * 2100 + "b")))
    monkeypatch.setattr(layer_scan, "MAX_ENTRIES", 3)
    assert "more than 3 entries" in refused(layer(*(File(str(number)) for number in range(4))))
    monkeypatch.setattr(layer_scan, "MAX_NAMES_BYTES", 50)
    assert "50 bytes of names" in refused(layer(File("a", headers={"SCHILY.xattr.a": "x" * 60})))


def test_an_unknown_type_of_entry_is_refused() -> None:
    assert "unknown type b'Z'" in refused(header(b"Z", 0) + bytes(1024))


@given(
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=12), st.booleans()
)
def test_damage_is_refused_or_read_but_never_a_crash(damage: list[tuple[int, int]], packed: bool) -> None:
    long = "n" * 300
    data = bytearray(
        layer(folder("d"), File(long, b"x" * 700), link("l", long), File("g", headers={"a": "b"}))
    )
    for place, byte in damage:
        data[place % len(data)] = byte
    with contextlib.suppress(BrokenImageError):
        read(gzipped(bytes(data)) if packed else bytes(data))
