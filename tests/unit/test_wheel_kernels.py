"""The program that reads CUDA wheels, on a small wheel with planted kernels."""

import struct
import zipfile
from datetime import date
from pathlib import Path

import pytest
import zstandard
from msgspec.structs import replace

from repro_image.adapters.shipped import DATA_FOLDER, compatibility_tables
from repro_image.core.compatibility import PtxKernels, parse_tables
from repro_image.core.reference import sha256_digest
from wheel_kernels import Entry, containers, merged, print_rows, read_wheel, toolkit

DAY = date(2026, 11, 22)
NAME = "vllm-9.9.0-cp38-abi3-manylinux_2_28_x86_64.whl"
CODE = b"\x7fELF code Cuda compilation tools, release 13.0, V13.0.88\0"
PTX, ELF = 1, 2


def program(kind: int, number: int, payload: bytes = CODE, *, flags: int = 0, extra: int = 0) -> bytes:
    """Return one entry. extra: further bytes of its header, which newer architectures have."""
    padded = payload + b"\0" * (-len(payload) % 8)
    header = struct.pack(
        "<HHIQIIHHIIIQ", kind, 0x101, 64 + extra, len(padded), len(payload), 0, 0, 9, number, 0, 0, flags
    )
    return header + b"\0" * (64 + extra - len(header)) + padded


def fat_binary(*programs: bytes) -> bytes:
    body = b"".join(programs)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def library(*fat_binaries: bytes, section: bytes = b".nv_fatbin") -> bytes:
    """Return an ELF file with one section of fat binaries, with gaps between them."""
    data = b"".join(binary + b"\0" * 24 for binary in fat_binaries)
    names = b"\0" + section + b"\0.shstrtab\0"
    offset = 64 + len(data) + len(names)
    sections = [
        (0, 0, 0, 0, 0, 0),
        (1, 1, 0, 0, 64, len(data)),
        (2 + len(section), 3, 0, 0, 64 + len(data), len(names)),
    ]
    head = bytearray(64)
    head[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", head, 0x28, offset)
    struct.pack_into("<HHH", head, 0x3A, 64, len(sections), 2)
    table = b"".join(struct.pack("<IIQQQQ", *header).ljust(64, b"\0") for header in sections)
    return bytes(head) + data + names + table


def wheel(folder: Path, **libraries: bytes) -> Path:
    path = folder / NAME
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vllm/envs.py", "# no library")
        for name, data in libraries.items():
            archive.writestr(f"vllm/{name}.abi3.so", data)
    return path


GENERAL = [program(ELF, 80), program(ELF, 90), program(ELF, 100, extra=48)]


def test_each_program_of_each_fat_binary_is_found_with_its_architecture() -> None:
    special = fat_binary(
        program(ELF, 90, flags=0x108011), program(ELF, 120, flags=0x1208011, extra=48), program(PTX, 80)
    )
    found = list(containers(library(fat_binary(*GENERAL), special)))
    assert [[(entry.kind, entry.architecture) for entry in entries] for entries in found] == [
        [(ELF, "8.0"), (ELF, "9.0"), (ELF, "10.0")],
        [(ELF, "9.0a"), (ELF, "12.0f"), (PTX, "8.0")],
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#!/bin/sh",
        library(),
        library(fat_binary()),
        library(fat_binary(*GENERAL), section=b".text"),
        library(fat_binary(program(ELF, 80))[:60]),
        library(struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 1 << 60)),
        library(fat_binary(b"\0" * 128)),
    ],
)
def test_a_library_without_programs_or_with_cut_ones_holds_none(data: bytes) -> None:
    assert [entry for entries in containers(data) for entry in entries] == []


def test_the_toolkit_is_named_in_packed_and_in_plain_machine_code() -> None:
    packed = Entry(ELF, "8.0", zstandard.ZstdCompressor().compress(CODE))
    assert toolkit([Entry(PTX, "8.0", b".version 9.0"), packed]) == "13.0"
    assert toolkit([Entry(ELF, "8.0", CODE)]) == "13.0"
    assert toolkit([Entry(ELF, "8.0", b"\x7fELF")]) is None


def test_a_wheel_s_row_tells_general_code_apart_from_single_and_special_kernels(tmp_path: Path) -> None:
    stray = fat_binary(program(ELF, 52), program(PTX, 52))
    path = wheel(
        tmp_path,
        _C=library(*[fat_binary(*GENERAL, program(ELF, 90, flags=0x108011))] * 3, stray),
        _fa2_C=library(*[fat_binary(program(ELF, 80), program(PTX, 80))] * 9),
        _fa3_C=library(*[fat_binary(program(ELF, 90, flags=0x100011))] * 9),
        _empty=library(),
    )
    row = read_wheel(path, filename=NAME, today=DAY)
    assert (row.name, row.version, row.cuda, row.read) == ("vllm", "9.9.0", "13.0", DAY)
    assert row.sha256 == sha256_digest(path.read_bytes())
    assert row.code == ("8.0", "9.0", "10.0")
    assert row.ptx == (
        PtxKernels(code=("5.2",), ptx="5.2", cuda="13.0"),
        PtxKernels(code=("8.0",), ptx="8.0", cuda="13.0"),
    )


def test_a_wheel_without_kernels_is_refused(tmp_path: Path) -> None:
    path = wheel(tmp_path, _C=library())
    with pytest.raises(SystemExit, match="no machine code for GPUs in it"):
        read_wheel(path, filename=NAME, today=DAY)


def test_rows_are_printed_as_the_shipped_table_and_read_back() -> None:
    shipped = (DATA_FOLDER / "wheels.toml").read_text(encoding="utf-8")
    tables = compatibility_tables()
    assert print_rows(reversed(tables.wheel)) == shipped
    names = ("advisories.toml", "compilers.toml", "cuda.toml", "gpus.toml", "settings.toml")
    others = {name: (DATA_FOLDER / name).read_text(encoding="utf-8") for name in names}
    assert parse_tables({**others, "wheels.toml": print_rows(tables.wheel)}) == tables


def test_a_row_that_says_the_same_keeps_its_day_and_a_changed_one_takes_its_place() -> None:
    first, second = compatibility_tables().wheel[:2]
    later = replace(first, read=date(2027, 1, 1))
    assert merged((first, second), (later,)) == (first, second)
    changed = replace(later, cuda="13.2")
    assert merged((first, second), (changed,)) == (changed, second)
    new = replace(first, sha256="sha256:" + "0" * 64)
    assert merged((first,), (new,)) == (first, new)
