"""core/image_diff.py and what feeds it: each cause is planted in a small image and has to be named."""

import gzip
import importlib.util
import json
import marshal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from repro_image.cli import group
from repro_image.core.canonical import readable_json
from repro_image.core.image_causes import FIXES, Cause
from repro_image.core.image_diff import Difference, ImageDifference
from repro_image.reports.image_diff import difference_json
from repro_image.steps.diff import diff_images, find_image
from tests.unit.made_images import (
    File,
    Layout,
    folder,
    gzipped,
    hard_link,
    layer,
    layout,
    link,
    zstandarded,
)

MAGIC = importlib.util.MAGIC_NUMBER


class Quiet:
    def line(self, text: str) -> None:
        raise AssertionError(text)

    def status(self, text: str) -> None:
        pass


def nowhere() -> Any:
    raise AssertionError("a layout needs neither engine nor project")


def compared(a: Path, b: Path, *ignore: str) -> ImageDifference:
    found = [find_image(str(path), engine=nowhere, project=nowhere) for path in (a, b)]
    return diff_images(found[0], found[1], ignore=ignore, reporter=Quiet())


@pytest.fixture
def differ(tmp_path: Path) -> Callable[..., ImageDifference]:
    """Compare two images, each given as its layers."""

    def differ(a: list[bytes], b: list[bytes], *ignore: str, **config: Any) -> ImageDifference:
        layout(tmp_path / "a", *a)
        layout(tmp_path / "b", *b, **config)
        return compared(tmp_path / "a", tmp_path / "b", *ignore)

    return differ


def only(difference: ImageDifference) -> Difference:
    [found] = difference.differences
    assert not difference.equal
    assert difference.exit_code == 10
    return found


def bytecode(code: bytes, *, flags: int = 0, stamp: bytes = bytes(8), magic: bytes = MAGIC) -> bytes:
    return magic + flags.to_bytes(4, "little") + stamp + code


CODE, OTHER = (marshal.dumps(compile(f"x = {n}", "a", "exec")) for n in (1, 2))
COMPILE = FIXES[Cause.BYTECODE]

# what is planted: A, B, cause, columns that differ, a part of the detail
PLANTED = {
    "time": (File("f", b"x"), File("f", b"x", mtime=2), Cause.TIME, ("mtime",), ""),
    "time of a folder": (folder("d"), folder("d", mtime=2), Cause.TIME, ("mtime",), ""),
    "time, by a nanosecond": (
        File("f", headers={"mtime": "1000000.000000001"}),
        File("f", headers={"mtime": "1000000.000000002"}),
        *(Cause.TIME, ("mtime",), ""),
    ),
    "time in gzip": (
        File("f.gz", gzip.compress(b"x" * 99, mtime=1)),
        File("f.gz", gzip.compress(b"x" * 99, mtime=2)),
        *(Cause.TIME, ("sha256",), "a time in its gzip header"),
    ),
    "gzip of other content": (
        File("f.gz", gzip.compress(b"some", compresslevel=0, mtime=1)),
        File("f.gz", gzip.compress(b"sone", compresslevel=0, mtime=2)),
        *(Cause.CONTENT, ("sha256",), ""),
    ),
    "mode": (File("f"), File("f", mode=0o600, mtime=2), Cause.MODE, ("mode", "mtime"), ""),
    "setuid": (File("f", mode=0o755), File("f", mode=0o4755), Cause.MODE, ("mode",), ""),
    "owner": (File("f"), File("f", uid=7, mode=0o600), Cause.OWNER, ("owner", "mode"), ""),
    "group": (File("f"), File("f", gid=7), Cause.OWNER, ("owner",), ""),
    "attributes": (
        File("f"),
        File("f", headers={"SCHILY.xattr.security.capability": "\1\0"}),
        *(Cause.ATTRIBUTES, ("xattrs",), ""),
    ),
    "link": (link("f", "a"), link("f", "b"), Cause.LINK, ("target",), "link to a in A, link to b in B"),
    "link or file": (File("f"), link("f", "b"), Cause.LINK, ("type", "target"), "file in A, link to b in B"),
    "folder or file": (
        File("f"),
        folder("f", mode=0o644),
        Cause.CONTENT,
        ("type",),
        "file in A, folder in B",
    ),
    "log": (File("var/log/a/b", b"x"), File("var/log/a/b", b"y"), Cause.LOG, ("sha256",), ""),
    "log by name": (File("srv/app.log", b"x"), File("srv/app.log"), Cause.LOG, ("size", "sha256"), ""),
    "time of a log": (File("var/log/a"), File("var/log/a", mtime=2), Cause.TIME, ("mtime",), ""),
    "cache of ldconfig": (
        File("var/cache/ldconfig/aux-cache", b"x"),
        File("var/cache/ldconfig/aux-cache", b"y"),
        *(Cause.CACHE, ("sha256",), ""),
    ),
    "cache of a user": (
        File("root/.cache/a", b"x"),
        File("root/.cache/a"),
        Cause.CACHE,
        ("size", "sha256"),
        "",
    ),
    "machine": (File("etc/machine-id", b"x"), File("etc/machine-id", b"y"), Cause.MACHINE, ("sha256",), ""),
    "content": (
        File("f", b"x"),
        File("f", b"y", mtime=2, mode=0),
        Cause.CONTENT,
        ("sha256", "mode", "mtime"),
        "",
    ),
    "bytecode with the time of its source": (
        File("f.pyc", bytecode(CODE, stamp=b"11111111")),
        File("f.pyc", bytecode(CODE, stamp=b"21111111")),
        *(Cause.BYTECODE, ("sha256",), "same code, the source's time or size in its header differs"),
    ),
    "bytecode of both forms": (
        File("f.pyc", bytecode(CODE, flags=0)),
        File("f.pyc", bytecode(CODE, flags=1)),
        *(Cause.BYTECODE, ("sha256",), "timestamp-based in A, hash-based in B"),
    ),
    "bytecode of one source": (
        File("f.pyc", bytecode(CODE, flags=3)),
        File("f.pyc", bytecode(OTHER, flags=3)),
        *(Cause.BYTECODE, ("sha256",), "same source, other code"),
    ),
    "bytecode of two sources": (
        File("f.pyc", bytecode(CODE, flags=3)),
        File("f.pyc", bytecode(OTHER, flags=3, stamp=b"otherone")),
        *(Cause.BYTECODE, ("sha256",), "the source differs too"),
    ),
    "bytecode of two Pythons": (
        File("f.pyc", bytecode(CODE)),
        File("f.pyc", bytecode(CODE, magic=b"\0\1\2\3")),
        *(Cause.BYTECODE, ("sha256",), "another version of Python"),
    ),
    "a folder that the builder mounts on": (
        *(folder("dev", mtime=1), folder("dev", mtime=2)),
        *(Cause.TIME, ("mtime",), "made by the builder"),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_cause_is_named_with_its_columns_and_a_fix(
    name: str, differ: Callable[..., ImageDifference]
) -> None:
    a, b, cause, fields, detail = PLANTED[name]
    found = only(differ([layer(File("same"), a)], [layer(File("same"), b)]))
    assert (found.path, found.cause, found.fields) == (f"/{a.path}", cause, fields)
    assert detail in found.detail
    assert found.fix
    assert found.a is not None
    assert found.b is not None
    assert found.a.layer == found.b.layer == 1


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("srv/x", Cause.CONTENT),
        ("usr/lib/__pycache__/a.cpython-311.pyc", Cause.BYTECODE),
        ("var/lib/apt/lists/x", Cause.CACHE),
        ("var/log/x", Cause.LOG),
    ],
)
def test_a_file_of_one_side_is_classified_by_its_place(
    path: str, cause: Cause, differ: Callable[..., ImageDifference]
) -> None:
    found = only(differ([layer()], [layer(File(path))]))
    assert (found.path, found.cause, found.detail, found.a) == (f"/{path}", cause, "only in B", None)


def test_a_hard_link_has_the_content_of_its_file_and_differs_from_a_copy(
    differ: Callable[..., ImageDifference],
) -> None:
    one = layer(File("f", b"x"), hard_link("g", "./f"))
    found = only(differ([one], [layer(File("f", b"x"), File("g", b"x"))]))
    assert (found.path, found.cause) == ("/g", Cause.LINK)
    assert found.detail == "hard link to f in A, file in B"
    assert found.a is not None
    assert found.b is not None
    assert found.a.sha256 == found.b.sha256


def test_the_same_files_in_another_order_are_told_as_order(differ: Callable[..., ImageDifference]) -> None:
    a, b = File("a"), File("b")
    found = only(differ([layer(), layer(a, b)], [layer(), layer(b, a)]))
    assert (found.path, found.cause, found.fix) == ("layer 2", Cause.ORDER, FIXES[Cause.ORDER])


def test_the_same_files_with_other_headers_are_told_as_archive(
    differ: Callable[..., ImageDifference],
) -> None:
    found = only(differ([layer(File("a", uname="me"))], [layer(File("a", uname="you"))]))
    assert (found.path, found.cause) == ("layer 1", Cause.ARCHIVE)


def test_a_file_twice_counts_as_the_later_one(differ: Callable[..., ImageDifference]) -> None:
    found = only(differ([layer(File("a", b"1"), File("a", b"2"))], [layer(File("a", b"2"))]))
    assert (found.path, found.cause) == ("layer 1", Cause.ARCHIVE)


def test_layers_stacked_in_another_order_are_told(differ: Callable[..., ImageDifference]) -> None:
    one, two = layer(File("a")), layer(File("b"))
    found = only(differ([one, two], [two, one]))
    assert (found.path, found.cause) == ("layers", Cause.ORDER)


def test_the_same_files_in_other_layers_are_told(differ: Callable[..., ImageDifference]) -> None:
    found = only(differ([layer(File("a")), layer(File("b"))], [layer(File("a"), File("b"))]))
    assert (found.path, found.cause, found.detail) == ("layers", Cause.LAYERS, "2 in A, 1 in B")


def test_a_difference_that_a_higher_layer_hides_is_told_of_its_layer(
    differ: Callable[..., ImageDifference],
) -> None:
    top = layer(File("f", b"top"))
    found = only(differ([layer(File("f", b"1")), top], [layer(File("f", b"2")), top]))
    assert (found.path, found.cause) == ("layer 1", Cause.CONTENT)
    assert found.detail == "/f differs, hidden by a layer above it"


def test_a_removal_of_nothing_is_told_of_its_layer(differ: Callable[..., ImageDifference]) -> None:
    found = only(differ([layer(File(".wh.x"))], [layer(File(".wh.y"))]))
    assert (found.path, found.cause) == ("layer 1", Cause.CONTENT)


def test_what_a_layer_removes_is_not_in_the_merged_view(differ: Callable[..., ImageDifference]) -> None:
    base = layer(folder("d"), File("d/a"), File("d/b"), File("e/c"), File("keep"))
    removed = layer(File(".wh.d"), File("e/.wh..wh..opq"))
    found = differ([base, removed], [base, layer()])
    assert {each.path: each.detail for each in found.differences} == dict.fromkeys(
        ("/d", "/d/a", "/d/b", "/e/c"), "only in B"
    )
    assert found.same_layers == 1


def test_each_file_names_its_layer(differ: Callable[..., ImageDifference]) -> None:
    base = layer(File("f", b"1"))
    found = only(differ([base, layer()], [base, layer(File("f", b"2"))]))
    assert found.a is not None
    assert found.b is not None
    assert (found.a.layer, found.b.layer) == (1, 2)


@pytest.mark.parametrize(
    ("config", "path", "cause", "detail"),
    [
        (
            {"config": {"Env": ["PATH=/sbin"]}},
            "config.config.Env.0",
            Cause.CONFIG,
            "'PATH=/bin' in A, 'PATH=/sbin' in B",
        ),
        ({"created": "2026-01-01T00:00:00Z"}, "config.created", Cause.TIME, "'2026-01-01T00:00:00Z' in B"),
        ({"author": "me"}, "config.author", Cause.CONFIG, "nothing in A, 'me' in B"),
        ({"history": [{"created": "x"}]}, "config.history.0.created", Cause.TIME, "nothing in A"),
    ],
)
def test_a_differing_config_is_told_by_its_key(
    config: dict[str, Any], path: str, cause: Cause, detail: str, differ: Callable[..., ImageDifference]
) -> None:
    found = [each for each in differ([layer()], [layer()], **config).differences if each.path == path]
    assert [each.cause for each in found] == [cause]
    assert detail in found[0].detail


def test_the_same_config_in_other_bytes_is_told(tmp_path: Path) -> None:
    a = layout(tmp_path / "a", layer())
    b = Layout(tmp_path / "b")
    manifest = json.loads((a.root / "blobs/sha256" / a.descriptors[0]["digest"][7:]).read_bytes())
    config = json.loads((a.root / "blobs/sha256" / manifest["config"]["digest"][7:]).read_bytes())
    b.blob(layer())
    manifest["config"] = b.blob(json.dumps(config, indent=1).encode())
    b.descriptors.append(b.blob(json.dumps(manifest).encode()))
    b.write_index()
    found = only(compared(a.root, b.root))
    assert (found.path, found.cause) == ("config", Cause.CONFIG)


def test_other_compression_is_no_difference_of_the_image(tmp_path: Path) -> None:
    files = layer(File("f", b"x" * 9999))
    plain, packed = layout(tmp_path / "a", files), layout(tmp_path / "b", files, pack=gzipped)
    found = compared(plain.root, packed.root)
    assert found.equal
    assert [(each.path, each.cause) for each in found.differences] == [("layer 1", Cause.COMPRESSION)]
    assert found.a.config == found.b.config
    assert found.a.manifest != found.b.manifest


def test_equal_config_digests_are_answered_without_a_look_at_the_layers(tmp_path: Path) -> None:
    made = layout(tmp_path / "a", layer(File("f")))
    blob = made.root / "blobs/sha256" / made.blob(layer(File("f")))["digest"][7:]
    blob.unlink()
    found = compared(made.root, made.root)
    assert (found.equal, found.differences, found.exit_code) == (True, (), 0)


@pytest.mark.parametrize("pack", [bytes, gzipped, zstandarded])
def test_layers_are_read_in_each_compression(pack: Any, tmp_path: Path) -> None:
    a = layout(tmp_path / "a", layer(File("f", b"x" * 99999)), pack=pack)
    b = layout(tmp_path / "b", layer(File("f", b"y" * 99999)), pack=pack)
    assert only(compared(a.root, b.root)).path == "/f"
    assert only(compared(a.tar(tmp_path / "a.tar"), b.root)).path == "/f"


def test_ignored_paths_do_not_count(differ: Callable[..., ImageDifference]) -> None:
    a, b = [layer(File("a/b/c", b"1"), File("f"))], [layer(File("a/b/c", b"2"), File("f"))]
    found = differ(a, b, "/a/*")
    assert (found.equal, found.differences, found.ignored, found.exit_code) == (True, (), 1, 0)


def test_ignoring_one_of_two_leaves_the_other(differ: Callable[..., ImageDifference]) -> None:
    found = differ([layer(File("a"), File("b"))], [layer()], "/a", created="now")
    assert [each.path for each in found.differences] == ["/b", "config.created"]
    assert found.ignored == 1


NAMES = st.sampled_from(["a", "b", "a/b", "a/b/c", "d", "é"])
FILES = st.builds(
    File,
    NAMES,
    content=st.sampled_from([b"", b"1", b"2"]),
    type=st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE]),
    mode=st.sampled_from([0o644, 0o755]),
    mtime=st.integers(0, 2),
)
IMAGES = st.lists(st.lists(FILES, max_size=4), min_size=1, max_size=3)


def archives(image: list[list[File]]) -> list[bytes]:
    return [
        layer(
            *(file if file.type == tarfile.REGTYPE else folder(file.path, mtime=file.mtime) for file in files)
        )
        for files in image
    ]


@given(IMAGES)
def test_an_image_does_not_differ_from_itself(
    tmp_path_factory: pytest.TempPathFactory, image: list[list[File]]
) -> None:
    root = tmp_path_factory.mktemp("same")
    a = layout(root / "a", *archives(image))
    b = layout(root / "b", *archives(image), pack=gzipped, created="later")
    assert compared(a.root, a.root).differences == ()
    found = compared(a.root, b.root, "layer *")
    assert [each.path for each in found.differences] == ["config.created"]


ONCE, TWICE, THRICE = ([File("a")] * count for count in (1, 2, 3))


@example([[], ONCE, THRICE], [[], TWICE, ONCE])  # the layer that both have stands elsewhere
@given(IMAGES, IMAGES)
def test_both_directions_name_the_same_paths_and_causes(
    tmp_path_factory: pytest.TempPathFactory, one: list[list[File]], other: list[list[File]]
) -> None:
    root = tmp_path_factory.mktemp("pair")
    a, b = layout(root / "a", *archives(one)), layout(root / "b", *archives(other))
    there, back = compared(a.root, b.root), compared(b.root, a.root)
    assert [(each.path, each.cause) for each in there.differences] == [
        (each.path, each.cause) for each in back.differences
    ]
    assert there.equal == back.equal == (there.a.config == there.b.config)
    assert there.equal or there.differences


def run(*arguments: str) -> Result:
    return CliRunner().invoke(group, [*arguments], standalone_mode=False)


def test_the_command_exits_with_0_and_10(tmp_path: Path) -> None:
    a, b = layout(tmp_path / "a", layer()), layout(tmp_path / "b", layer(File("f")))
    assert run("diff", str(a.root), str(a.root)).exit_code == 0
    assert run("diff", str(a.root), str(b.root)).exit_code == 10
    assert run("diff", str(a.root), str(b.root), "--ignore", "/f").exit_code == 0


def test_a_program_that_looks_inside_files_is_named_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (layout(tmp_path / name, layer(File("f", name.encode()))) for name in ("a", "b"))
    other = layout(tmp_path / "other", layer(File("f", b"a", mode=0o600)))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "diffoscope" not in run("diff", str(a.root), str(b.root)).stdout
    (tmp_path / "bin/diffoscope").touch(mode=0o755)
    told = run("diff", str(a.root), str(b.root)).stdout
    assert told.endswith(f"\ninside of the files: diffoscope {a.root} {b.root}\n")
    assert "diffoscope" not in run("diff", str(a.root), str(other.root)).stdout
    assert "diffoscope" not in run("diff", str(a.root), str(b.root), "--json").stdout


@pytest.mark.parametrize("count", [0, 1, 3, 1000, 1001])
def test_the_json_in_pieces_is_the_json_of_the_whole(
    differ: Callable[..., ImageDifference], count: int
) -> None:
    found = differ([layer()], [layer(*(File(f'{number}\n\\"') for number in range(count)))])
    assert len(found.differences) == count
    found = msgspec.structs.replace(found, a=msgspec.structs.replace(found.a, name='"differences": []'))
    assert "".join(difference_json(found)) == readable_json(found)


def test_the_report_is_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = [File("etc/motd", b"1"), File("bin/x", mode=0o755), folder("gone"), File("gone/a"), File("gone/b")]
    layout(tmp_path / "a", layer(File("same")), layer(*old))
    layout(tmp_path / "b", layer(File("same")), layer(File("etc/motd", b"2"), File("bin/x")), created="now")
    told = run("diff", "a", "b").stdout.splitlines()
    assert told[0] == "different: 6 differences; 1 of 2 layers the same"
    assert [line.split()[:2] for line in told[2:4]] == [["A", "a"], ["B", "b"]]
    assert told[5:9] == [
        "count  cause    what to change",
        f"    4  content  {FIXES[Cause.CONTENT]}",
        f"    1  mode     {FIXES[Cause.MODE]}",
        "    1  time     pass SOURCE_DATE_EPOCH to the build; a base from `docker import` has the time "
        "of its import",
    ]
    assert told[10:] == [
        "cause    layer  path            what",
        "mode     2      /bin/x          mode 0755 -> 0644",
        "content  2      /etc/motd       sha256 6b86b273ff34 -> d4735e3a265e",
        "content  2      /gone           only in A, with 2 more below it",
        "time     -      config.created  '1970-01-01T00:00:00Z' in A, 'now' in B",
    ]


def test_odd_names_reach_neither_terminal_nor_json_raw(tmp_path: Path) -> None:
    a = layout(tmp_path / "a", layer())
    b = layout(tmp_path / "b", layer(File("\x1b[2J\u202e"), File("b\udcff\n"), link("l", "\x1b\udcfe")))
    told = run("diff", str(a.root), str(b.root)).stdout
    assert "\x1b" not in told
    assert "\u202e" not in told
    assert "/\\x1b[2J\\u202e" in told
    assert "/b\\udcff\\n" in told
    document = json.loads(run("diff", str(a.root), str(b.root), "--json").stdout)
    assert [each["path"] for each in document["differences"]] == ["/\x1b[2J\u202e", "/b\\udcff\n", "/l"]


def test_json_has_every_column_of_both_sides(tmp_path: Path) -> None:
    a, b = (
        layout(tmp_path / "a", layer(File("f", b"x"))),
        layout(tmp_path / "b", layer(link("f", "y", uid=3))),
    )
    document = json.loads(run("diff", str(a.root), str(b.root), "--json").stdout)
    [row] = document["differences"]
    assert (document["equal"], document["ignored"], document["same_layers"]) == (False, 0, 0)
    assert row["b"] == {
        "layer": 1,
        "type": "link",
        "mode": "0644",
        "owner": "3:0",
        "size": 0,
        "mtime": "1000000",
        "target": "y",
        "sha256": None,
        "xattrs": "",
    }


def test_a_long_report_counts_what_it_leaves_out(tmp_path: Path) -> None:
    a = layout(tmp_path / "a", layer())
    b = layout(tmp_path / "b", layer(*(File(f"f{number:03}") for number in range(130))))
    told = run("diff", str(a.root), str(b.root)).stdout.splitlines()
    assert told[-1] == "and 30 more; --json lists all"
    assert len(told) == 1 + 1 + 2 + 1 + 2 + 1 + 101 + 1 + 1
