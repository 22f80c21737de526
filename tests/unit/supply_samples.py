"""A small project with all that lock and fetch need, on this disk: no network, engine or mmdebstrap."""

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest

from repro_image.adapters.debian import ResolvedDebs
from repro_image.adapters.engine import Mount, ToolResult
from repro_image.adapters.files import Project
from repro_image.adapters.package_index import PackageIndex
from repro_image.adapters.pip_settings import PipSettings
from repro_image.adapters.store import Store
from repro_image.adapters.web import Limits, Web
from repro_image.core.lockfile import LockedDeb
from repro_image.core.project import DebianBase, Settings
from repro_image.core.reference import sha256_digest
from repro_image.steps import base, fetch, lock
from tests.unit.wheels import LocalIndex, wheel_bytes

IMAGE = "small"
MEMBER = "tiny_model/model.gguf"
IMAGE_TOML = f"""
format = 1
description = "small"
platform = "linux/amd64"
[base]
kind = "debian"
suite = "bookworm"
[base.packages]
python3 = "runs it"
[python]
version = "3.11"
[python.excluded]
heavy = "not needed"
[python.sources]
torch = "cpu"
[model]
kind = "gguf"
name = "Tiny"
license = "Apache-2.0"
package = "tiny-model"
version = "1.0"
member = "{MEMBER}"
[golden]
suite = "tiny"
threads = 1
timeout_s = 60
memory_gib = 1
[golden.engine]
seed = 0
"""


class Notes:
    """A Reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def status(self, text: str) -> None:
        pass


class Supply:
    """The project and all its sources, in ``folder``; tests change them and look at what is asked for.

    pins:       what the resolver answers.
    debs:       Debian package -> content of its file.
    date:       Date of the newest Release file.
    asked:      names of what was run: ``resolve_debs``, ``make_root``, ``resolve``, ``convert``.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.pins = {"thing": "1.0", "torch": "2.0+cpu"}
        self.debs = {"python3": b"python", "libc6": b"c"}
        self.date = 1_700_000_000
        self.python = "3.11.2"
        self.asked: list[str] = []
        self.resolver_files: dict[str, str] = {}
        self.index_folder = LocalIndex(folder / "index")
        self.add_wheel("thing", "1.0")
        self.add_wheel("thing", "1.1")
        self.add_wheel("tiny-model", "1.0", {MEMBER: b"gguf"})
        self.add_wheel("uv", importlib.metadata.version("uv"))
        self.links = folder / "links"
        self.links.mkdir()
        (self.links / "torch-2.0+cpu-py3-none-any.whl").write_bytes(wheel_bytes("torch", "2.0+cpu"))
        self.store = Store(folder / "store")
        self._write_project()
        self.notes = Notes()
        monkeypatch.setattr(base, "resolve_debs", self.resolve_debs)
        monkeypatch.setattr(fetch, "deb_urls", self.deb_urls)
        monkeypatch.setattr(fetch, "make_root", self.make_root)
        monkeypatch.setattr(fetch, "convert", self.convert)

    @property
    def project(self) -> Project:
        return Project(self.folder / "project")

    @property
    def index(self) -> PackageIndex:
        settings = PipSettings(index_url=self.index_folder.url, find_links=(str(self.links),), timeout_s=2.0)
        web = Web(settings, limits=Limits(attempts=1, first_wait_s=0.01))
        return PackageIndex(web, indexes={"cpu": "http://nowhere.invalid/cpu"})

    def add_wheel(self, name: str, version: str, files: Mapping[str, bytes] | None = None) -> Path:
        filename = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        return self.index_folder.add(filename, wheel_bytes(name, version, files))

    def write(self, path: str, text: str) -> None:
        file = self.folder / "project" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def edit(self, path: str, old: str, new: str) -> None:
        file = self.folder / "project" / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def lock_files(self) -> dict[str, bytes]:
        folder = self.folder / "project" / "locks" / IMAGE
        return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}

    def lock(
        self,
        *,
        upgrade: bool = False,
        upgrade_packages: Sequence[str] = (),
        resolver: str | None = None,
    ) -> tuple[str, ...]:
        """Lock, and return what changed."""
        self.asked.clear()
        return lock.lock_image(
            self.project,
            IMAGE,
            store=self.store,
            engine=self,  # type: ignore[arg-type]  # the two methods that lock needs
            reporter=self.notes,
            resolver=resolver,
            upgrade=upgrade,
            upgrade_packages=upgrade_packages,
            index=self.index,
        ).changed

    def fetch(self) -> fetch.Fetched:
        self.asked.clear()
        return fetch.fetch_image(
            self.project,
            IMAGE,
            store=self.store,
            engine=self,  # type: ignore[arg-type]  # never asked: the base is no image of a registry
            reporter=self.notes,
            index=self.index,
        )

    def resolve_debs(self, base: DebianBase, *, settings: Settings, workspace: Path) -> ResolvedDebs:
        self.asked.append("resolve_debs")
        packages = tuple(
            LockedDeb(
                name=name,
                version="1.0",
                architecture="amd64",
                sha256=sha256_digest(data),
                size_bytes=len(data),
                path=f"pool/main/{name}_1.0_amd64.deb",
                archive=base.suite,
            )
            for name, data in sorted(self.debs.items())
        )
        return ResolvedDebs(packages=packages, source_date_epoch=self.date)

    def deb_urls(self, deb: LockedDeb, settings: Settings, distribution: str) -> tuple[str, ...]:
        file = self.folder / deb.name
        if deb.name in self.debs:
            file.write_bytes(self.debs[deb.name])
        return (str(file),)

    def make_root(
        self,
        debs: Mapping[LockedDeb, Path],
        *,
        source_date_epoch: int,
        workspace: Path,
        report: Callable[[str], None],
    ) -> Path:
        self.asked.append("make_root")
        tar = workspace / "root.tar"
        content = [path.read_bytes() for _, path in sorted(debs.items(), key=lambda item: item[0].name)]
        tar.write_bytes(b"|".join([*content, str(source_date_epoch).encode()]))
        return tar

    def convert(self, gguf_file: Path, out: Path) -> None:
        self.asked.append("convert")
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"converted " + gguf_file.read_bytes())
        (out / "config.json").write_bytes(b"{}\n")

    def ensure_root(self, digest: str, tar: Path, *, created_s: int) -> str:
        assert tar.is_file()
        return "root"

    def run_tool(
        self,
        image: str,
        command: Sequence[str],
        *,
        mounts: Sequence[Mount] = (),
        environment: Mapping[str, str] | None = None,
        network: Literal["none", "host"] = "none",
        timeout_s: float = 600,
        workdir: str = "/",
    ) -> ToolResult:
        if "-c" in command:
            tags = ["cp311-cp311-manylinux_2_36_x86_64", "py3-none-any"]
            return ToolResult(
                exit_code=0, stdout=json.dumps({"version": self.python, "tags": tags}), stderr=""
            )
        self.asked.append("resolve")
        for mount in mounts:
            if mount.target == "/repro/scratch":
                files = [path for path in mount.source.iterdir() if path.is_file()]
                self.resolver_files = {path.name: path.read_text() for path in files}
                text = "".join(f"{name}=={version}\n" for name, version in self.pins.items())
                (mount.source / "requirements.txt").write_text(text)
        return ToolResult(exit_code=0 if self.pins else 2, stdout="", stderr="nothing fits")

    def _write_project(self) -> None:
        self.write("pyproject.toml", '[tool.repro-image.indexes]\ncpu = "http://nowhere.invalid/cpu"\n')
        self.write(f"images/{IMAGE}/image.toml", IMAGE_TOML)
        self.write(f"requirements/{IMAGE}.in", "thing>=1\ntorch==2.0+cpu\n")
