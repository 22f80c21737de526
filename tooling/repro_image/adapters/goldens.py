"""Goldens as files: locks/<image>/goldens/<hex>.golden.zst, written once, proved at each reading."""

import os
from pathlib import Path

import msgspec

from repro_image.adapters.create_only import LOCK, TEMPORARY, create, exclusive, told
from repro_image.core.golden import Golden
from repro_image.core.golden_file import FORMAT, golden_bytes, parse_golden
from repro_image.core.reference import is_digest, sha256_digest
from repro_image.errors import AlreadyRecordedError, BrokenRecordError, InvalidFileError, NewerRecordError

MAX_BYTES = 64 * 2**20
_LEVEL = 19  # written once, read often, kept in git for good
_SUFFIX = ".golden.zst"


class _Head(msgspec.Struct):
    format: int


class Goldens:
    """locks/<image>/goldens.

    folder:    the folder itself; errors name it as ``locks/<image>/goldens``.
    timeout_s: how long a writer waits for another one.
    """

    def __init__(self, folder: Path, *, timeout_s: float = 30.0) -> None:
        self._folder, self._timeout_s = folder, timeout_s
        self.name = "/".join(folder.parts[-3:])

    def path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise ValueError(digest)
        return self._folder / f"{digest.removeprefix('sha256:')}{_SUFFIX}"

    def write(self, golden: Golden) -> str:
        """Keep ``golden`` and return its digest; one that is there already is proved and left as it is.

        Raises: LedgerError where that one is corrupt, LedgerDiskError, LedgerBusyError.
        """
        import zstandard

        data = golden_bytes(golden)
        digest = sha256_digest(data)
        compressed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)
        with exclusive(self._folder, name=self.name, timeout_s=self._timeout_s):
            try:
                create(self._folder, self.path(digest).name, compressed, name=self.name)
            except AlreadyRecordedError:
                self.read(digest)
        return digest

    def read(self, digest: str) -> Golden:
        """Return the golden with ``digest``.

        Raises: LedgerError where it is missing, corrupt or misshapen; NewerRecordError, LedgerDiskError.
        """
        file = self.path(digest)
        name = f"{self.name}/{file.name}"
        with told(name, state="the golden cannot be read"):
            data = _decompressed(file, name=name)
        found = sha256_digest(data)
        if found != digest:
            raise BrokenRecordError(f"the golden is corrupt: expected {digest}, found {found}", path=name)
        try:
            version = msgspec.json.decode(data.partition(b"\n")[0], type=_Head).format
            if version > FORMAT:
                raise NewerRecordError(f"golden format {version}, known is {FORMAT}", path=name, tool="")
            return parse_golden(data, path=name)
        except (InvalidFileError, msgspec.DecodeError) as error:
            what = error.what if isinstance(error, InvalidFileError) else f"not a golden: {error}"
            raise BrokenRecordError(what, path=name) from error

    def digests(self) -> tuple[str, ...]:
        """Return the digests of all goldens here, sorted. Raises: LedgerError for any other file."""
        with told(self.name, state="the goldens cannot be listed"):
            try:
                names = sorted(os.listdir(self._folder))  # noqa: PTH208 - names are all that is asked
            except FileNotFoundError:
                return ()
        digests = []
        for name in names:
            if name == LOCK or name.startswith(TEMPORARY):
                continue
            digest = f"sha256:{name.removesuffix(_SUFFIX)}"
            if not (name.endswith(_SUFFIX) and is_digest(digest)):
                raise BrokenRecordError(
                    "this file does not belong among the goldens", path=f"{self.name}/{name}"
                )
            digests.append(digest)
        return tuple(digests)


def _decompressed(file: Path, *, name: str) -> bytes:
    """Return what ``file`` holds. The size that its header claims is checked before anything is unpacked."""
    import zstandard

    try:
        with file.open("rb") as opened:
            compressed = opened.read(MAX_BYTES)
    except FileNotFoundError as error:
        raise BrokenRecordError("a golden is missing that an epoch names", path=name) from error
    try:
        size = zstandard.frame_content_size(compressed)
        if not 0 < size <= MAX_BYTES:
            raise BrokenRecordError(f"a golden cannot have {size} bytes", path=name)
        return zstandard.ZstdDecompressor().decompress(compressed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BrokenRecordError(f"the golden is corrupt: {error}", path=name) from error
