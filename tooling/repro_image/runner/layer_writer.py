"""Runs in a container of the stage `root`: runs the Dockerfile's own commands and writes what they install as
image layers.

usage: python layer_writer.py JOBS WORKERS SOURCE_DATE_EPOCH

JOBS              a JSON list of [name, shell script]; a script leaves its files below /out/<name>/<epoch>
/layers/NAME.tar  the layer; a line ``layer NAME sha256:… SIZE`` on stderr tells that it is whole

The tar is written as BuildKit's `COPY --link` would write it, byte for byte, so that a layer made here and
one made by BuildKit have one digest. Standard library only. Exits with 1 and a script's last words where one
fails.
"""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

_CHUNK = 1 << 20
_NAME, _PREFIX = 100, 155  # bytes of the two fields of a ustar header that hold a path


class RefusedError(Exception):
    """A command that failed, or something that no layer may hold."""


def run(script: str, epoch: str) -> None:
    """Run ``script`` as the Dockerfile's RUN does."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise RefusedError(f"exit code {done.returncode}\n{done.stderr.strip()[-4000:]}")


def write_layer(root: str, target: str, epoch: int) -> tuple[str, int]:
    """Write the files below ``root`` as a tar; return its digest and size."""
    digest, size = hashlib.sha256(), 0
    with Path(target).open("wb") as layer:

        def put(data: bytes) -> None:
            nonlocal size
            digest.update(data)
            layer.write(data)
            size += len(data)

        for path, entry in entries(root, ""):
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                put(header(path + "/", stat.S_IMODE(info.st_mode), 0, epoch, b"5"))
            elif stat.S_ISREG(info.st_mode):
                content(put, entry.path, header(path, stat.S_IMODE(info.st_mode), info.st_size, epoch, b"0"))
            else:
                raise RefusedError(f"{path} is neither a file nor a folder")
        put(bytes(1024))
    return f"sha256:{digest.hexdigest()}", size


def entries(folder: str, name: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield (path, entry) below ``folder``: sorted by name in each folder, a folder before what is in it."""
    with os.scandir(folder) as found:
        children = sorted(found, key=lambda entry: os.fsencode(entry.name))
    for entry in children:
        path = f"{name}/{entry.name}" if name else entry.name
        yield path, entry
        if entry.is_dir(follow_symlinks=False):
            yield from entries(entry.path, path)


def content(put: Callable[[bytes], None], path: str, head: bytes) -> None:
    """Put a file's header and content, padded to whole blocks; a small file in one piece."""
    size, piece = 0, head
    with Path(path).open("rb", buffering=0) as file:
        while data := file.read(_CHUNK):
            size += len(data)
            if len(piece) + len(data) > _CHUNK:
                put(piece)
                piece = b""
            piece += data
    put(piece + bytes(-size % 512))


def header(path: str, mode: int, size: int, mtime: int, kind: bytes) -> bytes:
    """Return the header of one file or folder, as Go's archive/tar writes it.

    ustar where the path fits, else a pax record before it.
    """
    name = os.fsencode(path)
    parts = _split(name)
    if parts is not None:
        return _block(parts[1], mode, size, mtime, kind, device=_octal(0, 8), prefix=parts[0])
    record = _record(b"path", name)
    folder, _, base = name.rpartition(b"/")
    title = _ascii(folder + b"/PaxHeaders.0/" + base).strip(b"/")[:_NAME].rstrip(b"/")
    extended = _block(title, 0, len(record), 0, b"x", device=bytes(8), prefix=b"")
    own = _block(_ascii(name), mode, size, mtime, kind, device=_octal(0, 8), prefix=b"")
    return extended + record + bytes(-len(record) % 512) + own


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """Return (prefix, name) for a ustar header; None where the path does not fit one."""
    if _ascii(name) != name:
        return None
    if len(name) <= _NAME:
        return b"", name
    length = _PREFIX + 1 if len(name) > _PREFIX + 1 else len(name) - name.endswith(b"/")
    slash = name.rfind(b"/", 0, length)
    rest = len(name) - slash - 1
    if slash <= 0 or slash > _PREFIX or not 0 < rest <= _NAME:
        return None
    return name[:slash], name[slash + 1 :]


def _block(
    name: bytes, mode: int, size: int, mtime: int, kind: bytes, *, device: bytes, prefix: bytes
) -> bytes:
    """Return one header block. device: both device numbers; the owner is root, without a name."""
    if len(name) > _NAME and name[_NAME - 1 : _NAME] == b"/":
        name = name[: _NAME - 1].rstrip(b"/")
    numbers = _octal(mode, 8) + _octal(0, 8) + _octal(0, 8) + _octal(size, 12) + _octal(mtime, 12)
    start = name[:_NAME].ljust(_NAME, b"\0") + numbers
    end = (
        kind + bytes(100) + b"ustar\x0000" + bytes(64) + 2 * device + prefix.ljust(_PREFIX, b"\0") + bytes(12)
    )
    checksum = sum(start) + sum(end) + 8 * ord(" ")
    return start + b"%06o\0 " % checksum + end


def _octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def _record(key: bytes, value: bytes) -> bytes:
    """Return one pax record; its length counts its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + len(str(len(rest)))
    if len(str(length)) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def _ascii(name: bytes) -> bytes:
    return bytes(byte for byte in name if byte < 128)


def make(name: str, script: str, epoch: str) -> None:
    """Run one script and write its layer."""
    run(script, epoch)
    digest, size = write_layer(f"/out/{name}/{epoch}", f"/layers/{name}.tar", int(epoch))
    print(f"layer {name} {digest} {size}", file=sys.stderr, flush=True)
    shutil.rmtree(f"/out/{name}")


def main() -> int:
    jobs = deque(json.loads(Path(sys.argv[1]).read_bytes()))
    workers, epoch = int(sys.argv[2]), sys.argv[3]
    failures: list[str] = []

    def work() -> None:
        while not failures:
            try:
                name, script = jobs.popleft()
            except IndexError:
                return
            try:
                make(name, script, epoch)
            except (RefusedError, OSError) as error:
                failures.append(f"{name}: {error}")

    os.umask(0o022)
    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
