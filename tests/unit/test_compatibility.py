from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.adapters.shipped import DATA_FOLDER, compatibility_tables
from repro_image.core.compatibility import (
    architecture_order,
    is_code_for,
    is_older,
    is_ptx_for,
    parse_tables,
    version_of,
)
from repro_image.core.lockfile import LockedWheel
from repro_image.errors import InvalidFileError
from tests.unit.made_locks import DIGEST

TABLES = compatibility_tables()
NAMES = ("advisories", "compilers", "cuda", "gpus", "settings", "wheels")
VLLM = "sha256:5e2ecdc5b0baf72921c288486417ca82778456a448e4fe60b62ee43c0dfc8611"
CAPABILITIES = st.tuples(st.integers(5, 15), st.integers(0, 9))


def texts(**changed: str) -> dict[str, str]:
    shipped = {name: (DATA_FOLDER / f"{name}.toml").read_text(encoding="utf-8") for name in NAMES}
    return {f"{name}.toml": text for name, text in (shipped | changed).items()}


def wheel(name: str, version: str, sha256: str = DIGEST) -> LockedWheel:
    return LockedWheel(name=name, version=version, sha256=sha256, filename=f"{name}.whl", size_bytes=1)


def test_every_shipped_row_names_its_source_and_the_day_it_was_read() -> None:
    rows = [row for field in TABLES.__struct_fields__ for row in getattr(TABLES, field)]
    assert len(rows) > 100
    assert all(row.source and date(2026, 11, 1) <= row.read for row in rows)


def test_no_shipped_row_says_a_thing_twice() -> None:
    for keys in (
        [row.cuda for row in TABLES.toolkit],
        [row.name for row in TABLES.gpu],
        [row.sha256 for row in TABLES.wheel],
        [row.name for row in TABLES.compiler],
        [row.setting for row in TABLES.setting],
    ):
        assert len(set(keys)) == len(keys)


def test_the_cuda_of_every_shipped_wheel_has_a_driver_floor() -> None:
    assert all(TABLES.toolkit_row(row.cuda) for row in TABLES.wheel)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("cuda", "[[toolkit]]\nfrobs = 1", "at `$.toolkit[0]`"),
        ("cuda", 'toolkit = []\nforward = []\n\n[[toolkits]]\ncuda = "13.0"', "unknown field `toolkits`"),
        ("settings", "", "missing required field `setting`"),
        ("gpus", "[[gpu]", "not TOML: "),
        ("settings", '[[setting]]\nsetting = "a=b"\ncapability = "8.0"', "missing required field"),
        (
            "settings",
            '[[setting]]\nsetting = "a=b"\ncapability = "eight"\nsource = "s"\nread = 2026-11-22',
            "`$.setting[0].capability`",
        ),
    ],
)
def test_a_table_with_a_wrong_row_is_refused_with_the_key_path(name: str, text: str, told: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        parse_tables(texts(**{name: text}))
    assert told in caught.value.what
    assert f"{name}.toml" in caught.value.where


@pytest.mark.parametrize(
    ("code", "capability", "runs"),
    [
        ("8.0", "8.0", True),
        ("8.0", "8.9", True),
        ("8.6", "8.0", False),
        ("8.0", "9.0", False),
        ("9.0", "9.0", True),
        ("9.0a", "9.0", True),
        ("10.0a", "10.3", False),
        ("10.0f", "10.3", True),
        ("10.3f", "10.0", False),
        ("10.0f", "11.0", False),
        ("12.0", "12.1", True),
        ("1.0", "10.0", False),
    ],
)
def test_machine_code_runs_on_its_own_major_and_newer_minors(code: str, capability: str, runs: bool) -> None:
    assert is_code_for(code, capability) is runs


@given(CAPABILITIES, CAPABILITIES)
def test_special_code_never_runs_where_plain_code_does_not(a: tuple[int, int], b: tuple[int, int]) -> None:
    code, capability = f"{a[0]}.{a[1]}", f"{b[0]}.{b[1]}"
    plain = is_code_for(code, capability)
    assert plain is (a[0] == b[0] and a[1] <= b[1])
    assert is_code_for(f"{code}f", capability) is plain
    assert is_code_for(f"{code}a", capability) is (a == b)
    # Whatever runs as machine code could also have been compiled from PTX; the other way round not.
    assert is_ptx_for(code, capability) is (a <= b)
    assert not plain or is_ptx_for(code, capability)


def test_capabilities_sort_by_their_numbers() -> None:
    assert sorted(["12.0", "9.0a", "9.0", "10.0f", "8.9"], key=architecture_order) == [
        *("8.9", "9.0", "9.0a", "10.0f", "12.0")
    ]


@pytest.mark.parametrize(
    ("found", "needed", "older"),
    [
        ("535.104.05", "580", True),
        ("580.65.06", "580", False),
        ("580.65.6", "580.65.06", False),
        ("1.17.8-1", "1.17.8", False),
        ("1.9.0", "1.17.8", True),
        ("", "580", None),
        (None, "580", None),
        ("N/A", "580", None),
    ],
)
def test_versions_compare_by_their_numbers_and_what_is_no_version_is_unknown(
    found: str | None, needed: str, older: bool | None
) -> None:
    assert is_older(found, needed) is older


def test_no_text_breaks_the_reading_of_a_version() -> None:
    assert str(version_of("580.95.05+x")) == "580.95.5"
    assert version_of("v1.2") is None


def test_a_locked_wheel_is_looked_up_by_its_hash_and_else_by_its_release() -> None:
    exact = TABLES.wheel_row(wheel("vllm", "0.32.0", VLLM))
    assert exact is not None
    assert (exact.cuda, exact.code[0], exact.source) == ("13.0", "7.5", "the wheel itself")
    assert TABLES.wheel_row(wheel("vllm", "0.32.0")) == exact
    assert TABLES.wheel_row(wheel("vllm", "9.9.9")) is None
    assert TABLES.wheel_row(wheel("torch", "0.32.0")) is None


def test_a_local_build_is_not_the_release_of_the_same_number() -> None:
    assert TABLES.wheel_row(wheel("torch", "2.13.0")) is not None
    assert TABLES.wheel_row(wheel("torch", "2.13.0+cpu")) is None


def test_among_the_files_of_a_release_one_that_was_read_is_preferred() -> None:
    row = TABLES.wheel_row(wheel("torch", "2.13.0"))
    assert row is not None
    unread = replace(row, ptx=None, sha256=DIGEST)
    tables = replace(TABLES, wheel=(unread, row))
    assert tables.wheel_row(wheel("torch", "2.13.0", "sha256:" + "1" * 64)) == row


def test_the_row_of_exactly_this_file_comes_before_any_other_of_its_release() -> None:
    row = TABLES.wheel_row(wheel("torch", "2.13.0"))
    assert row is not None
    rebuilt = replace(row, ptx=None, sha256=DIGEST, cuda="13.2")
    tables = replace(TABLES, wheel=(row, rebuilt))
    assert tables.wheel_row(wheel("torch", "2.13.0", DIGEST)) == rebuilt
