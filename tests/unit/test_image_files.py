"""core/image_files.py: what is seen when layers lie on one another, and which packages each brings."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from repro_image.core.image_files import FileEntry, Kind, Layer, Package, layer_packages, merge

PATHS = st.sampled_from(["a", "a/b", "a/b/c", "a/d", "ab", "e", "e/f"])


def entry(kind: Kind = Kind.FILE, size: int = 0) -> FileEntry:
    return FileEntry(kind=kind, mode=0o644, uid=0, gid=0, size=size, mtime_ns=0)


def made(
    entries: dict[str, FileEntry],
    *,
    removed: Sequence[str] = (),
    opaque: Sequence[str] = (),
    status: str = "",
) -> Layer:
    return Layer(
        diff_id="sha256:" + "0" * 64,
        size_bytes=0,
        entries=entries,
        removed=frozenset(removed),
        opaque=frozenset(opaque),
        dpkg_status=status or None,
    )


LAYERS = st.builds(
    made,
    st.dictionaries(PATHS, st.builds(entry, st.sampled_from([Kind.FILE, Kind.FOLDER]), st.integers(0, 3))),
    removed=st.lists(PATHS, max_size=2),
    opaque=st.lists(PATHS, max_size=1),
)


def unpacked(layers: Sequence[Layer]) -> dict[str, FileEntry]:
    """Return what slowly unpacking one layer after another leaves: the rules as OCI tells them."""
    seen: dict[str, FileEntry] = {}
    for layer in layers:
        for gone in layer.removed:
            seen = {path: at for path, at in seen.items() if path != gone and not path.startswith(f"{gone}/")}
        for folder in layer.opaque:
            seen = {path: at for path, at in seen.items() if not path.startswith(f"{folder}/")}
        below = seen
        for path, at in layer.entries.items():
            if at.kind is not Kind.FOLDER and path in below and below[path].kind is Kind.FOLDER:
                seen = {
                    name: old
                    for name, old in seen.items()
                    if not name.startswith(f"{path}/") or name in layer.entries
                }
            seen[path] = at
    return seen


@given(st.lists(LAYERS, max_size=4))
def test_the_merged_view_is_what_unpacking_leaves(layers: list[Layer]) -> None:
    assert {path: placed.entry for path, placed in merge(layers).items()} == unpacked(layers)


def test_a_removal_spares_the_layer_that_makes_it() -> None:
    base = made({"d": entry(Kind.FOLDER), "d/old": entry()})
    top = made({"d": entry(Kind.FOLDER), "d/new": entry()}, removed=["d"])
    assert sorted(merge([base, top])) == ["d", "d/new"]


def test_an_opaque_root_hides_everything_below() -> None:
    assert sorted(merge([made({"a": entry(), "b/c": entry()}), made({"x": entry()}, opaque=[""])])) == ["x"]


def test_a_name_that_only_begins_alike_stays() -> None:
    assert sorted(merge([made({"ab": entry(), "a": entry()}), made({}, removed=["a"])])) == ["ab"]


def test_each_layer_names_the_packages_that_it_brings() -> None:
    first = "Package: bash\nStatus: install ok installed\nVersion: 5.2\nDescription: a: b\n c: d\n"
    second = first + "\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
    second += "\nPackage: zlib1g\nStatus: install ok installed\nVersion: 1:1.2\n"
    layers = [
        made({"var/lib/dpkg/status": entry()}, status=first),
        made({"opt/env/Typing_Ext-4.1.dist-info/METADATA": entry(), "opt/env/x/METADATA": entry()}),
        made({"var/lib/dpkg/status": entry()}, status=second),
    ]
    assert layer_packages(layers) == [
        (Package("bash", "5.2"),),
        (Package("typing-ext", "4.1"),),
        (Package("zlib1g", "1:1.2"),),
    ]
