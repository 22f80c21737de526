"""A scratch copy of this project with an empty ledger, and the command line run in it as a user runs it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
COMMAND = Path(sys.executable).parent / "repro-image"
IMAGE = "vllm-cpu"


@dataclass(frozen=True, slots=True)
class Run:
    """How a command ended. seconds: wall clock."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Scratch:
    """One project folder. store: shared by all of them, so that wheels are fetched once.

    source: the project that is copied: this repository, unless its locks had to be made anew.
    image:  the image that a test is about.
    """

    source = REPOSITORY

    def __init__(self, folder: Path, store: Path, image: str = IMAGE) -> None:
        self.folder, self.store, self.image = folder, store, image
        for name in ("images", "requirements", "locks"):
            shutil.copytree(
                self.source / name,
                folder / name,
                ignore=shutil.ignore_patterns("epochs", "goldens"),
                dirs_exist_ok=True,
            )
        shutil.copy(REPOSITORY / "pyproject.toml", folder / "pyproject.toml")

    @property
    def locks(self) -> Path:
        return self.folder / "locks" / self.image

    @property
    def image_toml(self) -> Path:
        return self.folder / "images" / self.image / "image.toml"

    def change_image(self, old: str, new: str) -> None:
        text = self.image_toml.read_text()
        assert old in text
        self.image_toml.write_text(text.replace(old, new, 1))

    def command(self, *arguments: str, store: Path | None = None) -> list[str]:
        return [str(COMMAND), "--project", str(self.folder), "--store", str(store or self.store), *arguments]

    def run(
        self,
        *arguments: str,
        prefix: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        umask: int = 0o022,
        store: Path | None = None,
        timeout_s: float = 900,
    ) -> Run:
        begin = time.monotonic()
        done = subprocess.run(
            [*prefix, *self.command(*arguments, store=store)],
            capture_output=True,
            text=True,
            check=False,
            umask=umask,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        return Run(done.returncode, done.stdout, done.stderr, time.monotonic() - begin)

    def start(self, *arguments: str, store: Path | None = None) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(*arguments, store=store),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def epochs(self) -> list[str]:
        """Names of the epochs that are whole or not: every folder counts."""
        return sorted(path.name for path in (self.locks / "epochs").glob("[0-9]*"))

    def recorded(self) -> dict[str, bytes]:
        """Every file below locks/ with its bytes, lock files of flock left out."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted((self.folder / "locks").rglob("*"))
            if path.is_file() and path.name != ".lock"
        }


def containers() -> list[str]:
    """Names of the containers that repro-image started and that still exist, running or not."""
    listed = subprocess.run(
        ["docker", "ps", "--all", "--filter", "name=repro-image-", "--format", "{{.Names}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.split()


def wait_until(condition: Any, *, seconds: float) -> bool:
    """Return whether ``condition()`` came true within ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return bool(condition())


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def linked_copy(folder: Path, target: Path) -> None:
    """Copy ``folder``, its files as links to the same bytes where the file system lets us."""

    def link(source: str, place: str) -> None:
        try:
            os.link(source, place)
        except OSError:
            shutil.copyfile(source, place)

    shutil.copytree(folder, target, copy_function=link)
