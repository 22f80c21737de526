"""Small wheels and the indexes that list them, made on the spot."""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path


def wheel_bytes(name: str, version: str, files: Mapping[str, bytes] | None = None) -> bytes:
    """Return a wheel that pip would install; the same bytes for the same arguments."""
    folder = f"{name.replace('-', '_')}-{version}.dist-info"
    members = {
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{folder}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{folder}/RECORD": b"",
        **(files or {}),
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for member, content in sorted(members.items()):
            archive.writestr(zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, 0)), content)
    return data.getvalue()


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class LocalIndex:
    """An index in a folder, ``simple/`` beside ``files/``, as `file:` indexes usually are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "files").mkdir(parents=True)
        (root / "simple").mkdir()

    @property
    def url(self) -> str:
        return (self.root / "simple").as_uri()

    def add(self, filename: str, data: bytes, *, with_hash: bool = True, attributes: str = "") -> Path:
        path = self.root / "files" / filename
        path.write_bytes(data)
        project = filename.partition("-")[0].lower().replace("_", "-")
        page = self.root / "simple" / project / "index.html"
        page.parent.mkdir(exist_ok=True)
        fragment = f"#sha256={sha256_of(data)}" if with_hash else ""
        href = f"../../files/{filename.replace('+', '%2B')}{fragment}"
        old = page.read_text() if page.exists() else "<!DOCTYPE html><html><body>\n"
        page.write_text(f'{old}<a href="{href}"{attributes}>{filename}</a>\n')
        return path
