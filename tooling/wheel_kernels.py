"""Write the rows of repro_image/data/wheels.toml: what the kernels in a CUDA wheel were compiled for.

python tooling/wheel_kernels.py --lock locks/vllm-cuda/requirements.txt   what `repro-image fetch` has fetched
python tooling/wheel_kernels.py torch-2.13.0-….whl vllm-0.32.0-….whl      wheel files
"""

import argparse
import hashlib
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

import zstandard
from msgspec.structs import replace
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from repro_image.adapters.shipped import DATA_FOLDER, compatibility_tables
from repro_image.adapters.store import Store
from repro_image.cli import default_store
from repro_image.core.compatibility import PtxKernels, WheelRow, architecture_order, ptx_order
from repro_image.core.lockfile import parse_requirements

TABLE = DATA_FOLDER / "wheels.toml"
WHEELS = ("torch", "vllm")

_SECTIONS = (".nv_fatbin", "__nv_relfatbin")
_CONTAINER = struct.Struct("<IHHQ")  # magic, version, size of this header, size of what follows
_MAGIC = struct.pack("<I", 0xBA55ED50)
# kind, -, header, padded payload, packed payload, -, -, -, architecture, -, -, flags
_ENTRY = struct.Struct("<HHIQIIHHIIIQ")
_PTX, _ELF = 1, 2
_ARCHITECTURE_CODE, _FAMILY_CODE = 1 << 20, 1 << 21
_ZSTD = b"\x28\xb5\x2f\xfd"
_TOOL = re.compile(rb"Cuda compilation tools, release (\d+\.\d+), V")
# An architecture counts as general when this share of the kernels has it, as against the most frequent one:
# single kernels exist for architectures that the library as a whole does not support.
_GENERAL = 0.5
_EXACT = "the wheel itself"


class Entry(NamedTuple):
    """One program of a fat binary: PTX or machine code."""

    kind: int
    architecture: str
    payload: bytes


def containers(library: bytes) -> Iterator[list[Entry]]:
    """Yield the programs of each fat binary in an ELF library: variants of the same kernels.

    The layout is not documented: this is what nvcc 12 and 13 write. The architectures read from it agree with
    the compiler's own `-arch` in the notes of the machine code.
    """
    for start, size in _sections(library):
        position, end = library.find(_MAGIC, start, start + size), start + size
        while position >= 0:
            _, _, header, body = _CONTAINER.unpack_from(library, position)
            first = position + header
            yield list(_entries(library, first, min(first + body, end)))
            position = library.find(_MAGIC, first + body, end)


def _sections(library: bytes) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) of the sections that hold fat binaries. 64-bit ELF, elf(5)."""
    if library[:5] != b"\x7fELF\x02":
        return
    (table,) = struct.unpack_from("<Q", library, 0x28)
    step, count, names = struct.unpack_from("<HHH", library, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", library, table + index * step) for index in range(count)]
    for name, _, _, _, offset, size in headers:
        at = headers[names][4] + name
        if library[at : library.index(b"\0", at)].decode("ascii", "replace") in _SECTIONS:
            yield offset, size


def _entries(library: bytes, position: int, end: int) -> Iterator[Entry]:
    while position + _ENTRY.size <= end:
        kind, _, header, padded, packed, *_, number, _, _, flags = _ENTRY.unpack_from(library, position)
        if header < _ENTRY.size or position + header + padded > end:
            return
        payload = library[position + header : position + header + (packed or padded)]
        suffix = "a" if flags & _ARCHITECTURE_CODE else "f" if flags & _FAMILY_CODE else ""
        yield Entry(kind, f"{number // 10}.{number % 10}{suffix}", payload)
        position += header + padded


def toolkit(entries: Iterable[Entry]) -> str | None:
    """Return the CUDA release that a program of machine code names as its compiler's, such as ``13.0``."""
    for entry in entries:
        if entry.kind == _ELF:
            code = entry.payload
            if code.startswith(_ZSTD):
                code = zstandard.ZstdDecompressor().decompress(code, max_output_size=1 << 30)
            if match := _TOOL.search(code):
                return match[1].decode()
    return None


def read_wheel(path: Path, *, filename: str, today: date) -> WheelRow:
    """Return the row of one wheel. filename: as the index names it; ``path`` may be a file of the store."""
    name, version = parse_wheel_filename(filename)[:2]
    general: list[Counter[str]] = []
    ptx: set[tuple[tuple[str, ...], str]] = set()
    toolkits: set[str] = set()
    with zipfile.ZipFile(path) as wheel:
        for member in wheel.namelist():
            if re.search(r"\.so(\.\d+)*$", member):
                programs = [entries for entries in containers(wheel.read(member)) if entries]
                found = next(filter(None, map(toolkit, programs)), None)
                toolkits |= {found} if found else set()
                general.append(_plain(programs))
                ptx |= {pair for entries in programs for pair in _ptx(entries)}
    if not toolkits:
        raise SystemExit(f"{filename}: no machine code for GPUs in it")
    cuda = max(toolkits, key=architecture_order)
    # The library that supports the most architectures is the general one; others are for some GPUs only.
    widest = max(general, key=lambda counts: (len(counts), counts.total()))
    return WheelRow(
        name=canonicalize_name(name),
        version=str(version),
        sha256=f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
        cuda=cuda,
        code=_sorted(a for a, count in widest.items() if count >= _GENERAL * max(widest.values())),
        ptx=tuple(sorted((PtxKernels(code=a, ptx=b, cuda=cuda) for a, b in ptx), key=ptx_order)),
        source=_EXACT,
        read=today,
    )


def _plain(programs: Iterable[list[Entry]]) -> Counter[str]:
    """Return how many containers have machine code for each architecture, special features aside."""
    return Counter(
        architecture
        for entries in programs
        for architecture in {entry.architecture for entry in entries if entry.kind == _ELF}
        if architecture[-1].isdigit()
    )


def _ptx(entries: list[Entry]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (architectures with machine code, architecture of the PTX) for each PTX of one fat binary."""
    code = _sorted({entry.architecture for entry in entries if entry.kind == _ELF})
    for entry in entries:
        if entry.kind == _PTX:
            yield code, entry.architecture.rstrip("af")


def _sorted(architectures: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(architectures, key=architecture_order))


def print_rows(rows: Iterable[WheelRow]) -> str:
    """Return wheels.toml; ``parse_tables`` reads it back."""
    lines = [
        "# What the kernels in CUDA wheels were compiled for. `make compatibility` writes the rows of which",
        f"# {_EXACT} is the source; others were read elsewhere, and keep what they say.",
    ]
    for row in sorted(rows, key=lambda row: (row.name, Version(row.version), row.sha256)):
        lines += ["", "[[wheel]]", f'name = "{row.name}"', f'version = "{row.version}"']
        lines += [f'sha256 = "{row.sha256}"', f'cuda = "{row.cuda}"', f"code = {_list(row.code)}"]
        if row.ptx is not None:
            inner = [f'{{ code = {_list(p.code)}, ptx = "{p.ptx}", cuda = "{p.cuda}" }}' for p in row.ptx]
            lines.append("ptx = [" + "".join(f"\n    {text}," for text in inner) + ("\n]" if inner else "]"))
        lines += [f'source = "{row.source}"', f"read = {row.read.isoformat()}"]
    return "\n".join(lines) + "\n"


def _list(texts: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{text}"' for text in texts) + "]"


def merged(old: Iterable[WheelRow], new: Iterable[WheelRow]) -> tuple[WheelRow, ...]:
    """Return ``old`` with the rows of ``new`` in the place of those of the same file.

    A row that says the same keeps the day on which it was read.
    """
    rows = {row.sha256: row for row in old}
    for row in new:
        before = rows.get(row.sha256)
        is_news = before is None or replace(row, read=before.read) != before
        rows[row.sha256] = row if is_news or before is None else before
    return tuple(rows.values())


def main() -> None:
    """Read the wheels that the command line names and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lock", type=Path)
    parser.add_argument("wheels", nargs="*", type=Path)
    arguments = parser.parse_args()
    files = [(path, path.name) for path in arguments.wheels]
    if arguments.lock:
        lock = parse_requirements(arguments.lock.read_text(), path=str(arguments.lock), image="")
        store = Store(default_store())
        files += [(store.path(w.sha256), w.filename) for w in lock.wheels if w.name in WHEELS]
    today = datetime.now(UTC).date()
    new = [read_wheel(path, filename=name, today=today) for path, name in files]
    TABLE.write_text(print_rows(merged(compatibility_tables().wheel, new)))
    for row in new:
        print(f"{row.name} {row.version}: CUDA {row.cuda}, machine code for {' '.join(row.code)}")


if __name__ == "__main__":
    main()
