from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.core.layers import (
    BUCKETS,
    HEAVY_BYTES,
    MAX_GROUPS,
    UNPACKED_FACTOR,
    LayerGroup,
    layer_groups,
    memory_to_unpack,
)
from repro_image.core.lockfile import LockedWheel
from repro_image.core.reference import sha256_digest


def make_wheel(name: str, size_bytes: int, version: str = "1") -> LockedWheel:
    filename = f"{name}-{version}-py3-none-any.whl"
    digest = sha256_digest(filename.encode())
    return LockedWheel(name=name, version=version, sha256=digest, filename=filename, size_bytes=size_bytes)


_names = st.from_regex(r"[a-z]{1,5}(-[a-z]{1,3})?", fullmatch=True)
_light = st.integers(0, HEAVY_BYTES - 1)
_wheels = st.dictionaries(_names, st.one_of(_light, st.integers(HEAVY_BYTES, 2**32)), max_size=15).map(
    lambda sizes: [make_wheel(name, size) for name, size in sizes.items()]
)


def by_name(groups: Sequence[LayerGroup]) -> dict[str, LayerGroup]:
    assert len({group.name for group in groups}) == len(groups)
    return {group.name: group for group in groups}


@given(_wheels)
def test_every_wheel_is_in_exactly_one_layer(wheels: list[LockedWheel]) -> None:
    groups = layer_groups(wheels)
    placed = [wheel for group in groups for wheel in group.wheels]
    assert sorted(placed, key=lambda wheel: wheel.name) == sorted(wheels, key=lambda wheel: wheel.name)
    assert all(group.wheels for group in by_name(groups).values())


@given(_wheels)
def test_heavy_wheels_lie_alone_at_the_bottom_largest_first(wheels: list[LockedWheel]) -> None:
    groups = layer_groups(wheels)
    heavy = [group for group in groups if group.size_bytes >= HEAVY_BYTES and group.name.startswith("wheel-")]
    assert groups[: len(heavy)] == tuple(heavy)
    assert [group.size_bytes for group in heavy] == sorted((g.size_bytes for g in heavy), reverse=True)
    assert all(len(group.wheels) == 1 for group in heavy)
    assert len(groups) - len(heavy) <= BUCKETS


@given(st.data())
def test_the_order_of_the_wheels_does_not_matter(data: st.DataObject) -> None:
    wheels = data.draw(_wheels)
    assert layer_groups(data.draw(st.permutations(wheels))) == layer_groups(wheels)


@given(_wheels, _names, _light)
def test_a_new_light_wheel_leaves_all_other_layers_as_they_are(
    wheels: list[LockedWheel], name: str, size_bytes: int
) -> None:
    wheels = [wheel for wheel in wheels if wheel.name != name]
    before = by_name(layer_groups(wheels))
    after = by_name(layer_groups([*wheels, make_wheel(name, size_bytes)]))
    changed = [key for key in after if before.get(key) != after[key]]
    assert len(changed) == 1
    assert set(before) <= set(after)


@given(_wheels.filter(bool), st.data())
def test_a_bump_changes_only_the_layer_of_its_wheel(wheels: list[LockedWheel], data: st.DataObject) -> None:
    bumped = data.draw(st.sampled_from(wheels))
    is_heavy = bumped.size_bytes >= HEAVY_BYTES
    size = data.draw(st.integers(HEAVY_BYTES, 2**32) if is_heavy else _light)
    new = [make_wheel(w.name, size, version="2") if w is bumped else w for w in wheels]
    before, after = by_name(layer_groups(wheels)), by_name(layer_groups(new))
    assert set(before) == set(after)
    changed = [key for key in after if before[key] != after[key]]
    assert [bumped.name in {wheel.name for wheel in before[key].wheels} for key in changed] == [True]


_many = st.lists(st.integers(HEAVY_BYTES, 2**32), min_size=MAX_GROUPS, max_size=120).map(
    lambda sizes: [make_wheel(f"heavy-{number}", size) for number, size in enumerate(sizes)]
)


@given(_many, _wheels)
def test_there_are_at_most_48_layers_however_many_wheels_are_heavy(
    heavy: list[LockedWheel], others: list[LockedWheel]
) -> None:
    wheels = [*heavy, *(wheel for wheel in others if not wheel.name.startswith("heavy"))]
    groups = layer_groups(wheels)
    assert len(groups) <= MAX_GROUPS
    placed = [wheel for group in groups for wheel in group.wheels]
    assert sorted(wheel.filename for wheel in placed) == sorted(wheel.filename for wheel in wheels)
    alone = [group.size_bytes for group in groups if group.name.startswith("wheel-")]
    assert min(alone, default=2**33) >= max(
        (wheel.size_bytes for group in groups[len(alone) :] for wheel in group.wheels), default=0
    )


@given(_many, st.data())
def test_also_among_many_heavy_wheels_a_light_one_changes_its_own_bucket_only(
    heavy: list[LockedWheel], data: st.DataObject
) -> None:
    light = make_wheel("light", data.draw(_light))
    before, after = by_name(layer_groups(heavy)), by_name(layer_groups([*heavy, light]))
    changed = [key for key in after if before.get(key) != after[key]]
    assert [light in after[key].wheels for key in changed] == [True]


@given(_wheels.filter(bool), st.data())
def test_a_wheel_that_grows_heavy_leaves_its_bucket_and_changes_nothing_else(
    wheels: list[LockedWheel], data: st.DataObject
) -> None:
    grown = data.draw(st.sampled_from(wheels))
    small = [make_wheel(w.name, 1) if w is grown else w for w in wheels]
    large = [make_wheel(w.name, HEAVY_BYTES) if w is grown else w for w in wheels]
    before, after = by_name(layer_groups(small)), by_name(layer_groups(large))
    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    (bucket,) = [key for key in before if grown.name in {wheel.name for wheel in before[key].wheels}]
    assert changed == {bucket, f"wheel-{grown.name}"}


def test_a_layer_has_the_slice_of_the_lock_that_an_installer_reads() -> None:
    wheel = replace(make_wheel("a", 3), sha256="sha256:" + "0" * 64)
    group = LayerGroup(name="bucket-0", wheels=(wheel,))
    assert group.requirements == f"a==1 --hash=sha256:{'0' * 64}  # a-1-py3-none-any.whl 3 bytes from index\n"


def test_the_largest_layers_made_at_once_are_unpacked_in_half_of_the_memory_or_on_a_disk() -> None:
    groups = [LayerGroup(name=str(size), wheels=(make_wheel("a", size),)) for size in (10, 700, 40)]
    needed = UNPACKED_FACTOR * 740
    assert memory_to_unpack(groups, at_once=2, available_bytes=2 * needed) == needed
    assert memory_to_unpack(groups, at_once=2, available_bytes=2 * needed - 1) == 0
    assert memory_to_unpack(groups, at_once=8, available_bytes=10**6) == 500_000
    assert memory_to_unpack(groups, at_once=2, available_bytes=0) == 0, "the system does not tell"
