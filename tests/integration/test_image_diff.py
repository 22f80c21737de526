"""`repro-image diff` and `images show` on images that a real builder made, in a real engine's store."""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repro_image.adapters import image_blobs
from repro_image.adapters.engine import Engine
from repro_image.core.image_diff import ImageDifference
from repro_image.errors import ImageMissingError
from repro_image.steps.diff import diff_images, find_image
from tests.integration.conftest import Quiet
from tests.scratch import COMMAND, docker
from tests.unit.made_images import File, layer, layout

pytestmark = [
    pytest.mark.docker,
    # The SDK leaves the socket of a connection that is cut short to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# What a build does wrong, each with a value that differs from build to build.
RECIPE = """
FROM base
ARG CHANCE
ENV CHANCE=$CHANCE
RUN set -eu; \\
    mkdir -p /opt/app /opt/gone; \\
    echo 'x = 1' >/opt/app/source.py; \\
    touch -d "@100000$CHANCE" /opt/app/source.py; \\
    cd /opt/app; \\
    python3 -c 'import py_compile; py_compile.compile("source.py", cfile="compiled.pyc")'; \\
    echo same >/opt/app/mode; chmod "64$CHANCE" /opt/app/mode; \\
    echo same >/opt/app/owner; chown "$CHANCE:$CHANCE" /opt/app/owner; \\
    ln -s "target-$CHANCE" /opt/app/link; \\
    echo "$CHANCE" >/opt/app/content; \\
    echo "$CHANCE" >/var/log/build.log; \\
    echo "$CHANCE" >/etc/machine-id; \\
    mkdir -p /var/cache/ldconfig; echo "$CHANCE" >/var/cache/ldconfig/aux-cache; \\
    touch -hd @1000009 /opt/gone /opt/app/[!s]* /var/log/build.log /etc/machine-id /var/cache/ldconfig/*; \\
    if [ "$CHANCE" = 4 ]; then rm -r /opt/gone; fi; \\
    touch -d @1000009 /opt /opt/app /etc /var/log /var/cache /var/cache/ldconfig
"""
EXPECTED = {
    "/etc/machine-id": "machine",
    "/opt/app/compiled.pyc": "bytecode",
    "/opt/app/content": "content",
    "/opt/app/link": "link",
    "/opt/app/mode": "mode",
    "/opt/app/owner": "owner",
    "/opt/app/source.py": "time",
    "/opt/gone": "content",
    "/var/cache/ldconfig/aux-cache": "cache",
    "/var/log/build.log": "log",
}


# The command in a process that tells its peak of memory. rusage would count its parent's, too.
PEAK = """
import re, sys
from pathlib import Path
from repro_image.cli import main
try:
    main()
finally:
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


class Builder:
    """Builds the recipe; every image goes at the end."""

    def __init__(self, base: str, folder: Path) -> None:
        self._base, self._folder = base, folder
        self.repository = f"repro-image-test-diff-{uuid.uuid4().hex[:8]}"
        self.names: list[str] = []

    def build(self, tag: str, *, chance: int, compression: str = "uncompressed") -> str:
        name = f"{self.repository}:{tag}"
        self.names.append(name)
        (self._folder / "Dockerfile").write_text(RECIPE)
        output = f"type=image,name={name},compression={compression},force-compression=true"
        arguments = ["docker", "buildx", "build", "--quiet", "--output", output, "--provenance=false"]
        arguments += ["--build-context", f"base=docker-image://{self._base}", "--network", "none"]
        arguments += ["--build-arg", f"CHANCE={chance}", "--build-arg", "SOURCE_DATE_EPOCH=1000009"]
        arguments += [str(self._folder)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return name


@pytest.fixture(scope="module")
def builder(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    builder = Builder(image, tmp_path_factory.mktemp("recipe"))
    yield builder
    for name in builder.names:
        Engine().untag(name)


@pytest.fixture(scope="module")
def pair(builder: Builder) -> tuple[str, str]:
    """Two builds of one recipe that takes chances."""
    return builder.build("one", chance=0), builder.build("other", chance=4)


def compared(a: str, b: str) -> ImageDifference:
    found = [find_image(text, engine=Engine, project=pytest.fail) for text in (a, b)]
    return diff_images(found[0], found[1], ignore=(), reporter=Quiet())


def run(*arguments: str) -> tuple[int, Any]:
    done = subprocess.run(
        [str(COMMAND), *arguments, "--json"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_each_chance_that_a_build_took_is_named(pair: tuple[str, str]) -> None:
    code, found = run("diff", *pair)
    files = {row["path"]: row["cause"] for row in found["differences"] if row["path"].startswith("/")}
    assert files.pop("/dev", "time") == "time"  # BuildKit mounts there, and makes the folder for it
    assert files == EXPECTED
    assert code == 10
    assert found["same_layers"] == 1
    config = {row["path"]: row["cause"] for row in found["differences"] if row["path"].startswith("config")}
    assert config["config.config.Env.1"] == "config"
    assert "config.created" not in config
    layers = [(row["a"] or row["b"])["layer"] for row in found["differences"] if row["a"] or row["b"]]
    assert set(layers) == {2}


def test_another_order_of_the_same_files_is_named(tmp_path: Path) -> None:
    """BuildKit sorts what it writes, so the two orders come in as `docker import` takes them."""
    names = [f"repro-image-test-order-{uuid.uuid4().hex[:8]}:{side}" for side in ("a", "b")]
    files = [File("etc/one", b"1"), File("etc/other", b"2")]
    try:
        for name, order in zip(names, (files, files[::-1]), strict=True):
            (tmp_path / "root.tar").write_bytes(layer(*order))
            docker("import", str(tmp_path / "root.tar"), name)
        code, found = run("diff", *names, "--ignore", "config.*")
    finally:
        for name in names:
            Engine().untag(name)
    assert code == 10
    assert [(row["path"], row["cause"]) for row in found["differences"]] == [("layer 1", "order")]


def test_twenty_thousand_differences_take_little_memory(tmp_path: Path) -> None:
    paths = [f"opt/env/lib/package{number % 50:02}/module_{number:05}.py" for number in range(20_000)]
    for side in ("a", "b"):
        layout(tmp_path / side, layer(*(File(path, f"{side}{path}".encode()) for path in paths)))
    for form in ((), ("--json",)):
        command = [sys.executable, "-c", PEAK, "diff", str(tmp_path / "a"), str(tmp_path / "b"), *form]
        with (tmp_path / "out").open("wb") as out:
            done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 10
        assert int(done.stderr) < 100 * 1024  # KiB; 200 MiB are for five times as many
    assert len(json.loads((tmp_path / "out").read_bytes())["differences"]) == len(paths)


def test_what_is_ignored_does_not_count(pair: tuple[str, str]) -> None:
    patterns = [part for path in (*EXPECTED, "/dev", "config.*") for part in ("--ignore", path)]
    code, found = run("diff", *pair, *patterns)
    assert (code, found["equal"], found["differences"]) == (0, True, [])
    assert found["ignored"] >= len(EXPECTED) + 1


def test_docker_save_tells_the_same_as_the_store(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = compared(*pair)
    monkeypatch.setattr(image_blobs, "_STORES", ())
    assert compared(*pair) == straight


def test_an_image_and_its_saved_archive_are_equal(pair: tuple[str, str], tmp_path: Path) -> None:
    docker("save", "--output", str(tmp_path / "one.tar"), pair[0])
    code, found = run("diff", pair[0], str(tmp_path / "one.tar"))
    assert (code, found["differences"]) == (0, [])
    code, found = run("diff", str(tmp_path / "one.tar"), pair[1])
    assert {row["path"] for row in found["differences"]} >= EXPECTED.keys()
    assert code == 10


def test_the_same_build_in_other_compressions_is_the_same_image(
    builder: Builder, pair: tuple[str, str]
) -> None:
    for compression in ("gzip", "zstd"):
        other = builder.build(compression, chance=0, compression=compression)
        code, found = run("diff", pair[0], other)
        assert code == 0
        assert found["a"]["config"] == found["b"]["config"]
        assert found["a"]["manifest"] != found["b"]["manifest"]
        assert {row["cause"] for row in found["differences"]} == {"compression"}
        code, found = run("diff", other, pair[1])
        assert {row["path"] for row in found["differences"]} >= EXPECTED.keys()


def test_layers_are_shown_with_their_packages_and_what_a_move_gets(image: str, pair: tuple[str, str]) -> None:
    code, found = run("images", "show", pair[1], "--from", image)
    base, top = found["layers"]
    assert code == 0
    assert "python3-minimal" in {package["name"] for package in base["packages"]}
    assert (top["packages"], base["size_bytes"] > 10**7) == ([], True)
    assert "mkdir -p /opt/app" in top["created_by"]
    assert found["move"]["layers"] == [2]
    assert found["move"]["size_bytes"] == top["size_bytes"]
    assert found["size_bytes"] == base["size_bytes"] + top["size_bytes"]


def test_an_image_that_is_not_here_is_an_error() -> None:
    with pytest.raises(ImageMissingError):
        find_image("repro-image-test/none:x", engine=Engine, project=pytest.fail)
