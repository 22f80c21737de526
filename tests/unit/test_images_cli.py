"""steps/images.py and cli/images.py: what an image is made of, and what a move to it costs."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from repro_image.cli import group
from repro_image.errors import BrokenImageError, UnknownEpochError
from tests.unit.made_images import File, Layout, digest_of, folder, gzipped, layer, layout
from tests.unit.made_locks import ROOT, shipped_image

BASE = layer(
    folder("var"),
    File("var/lib/dpkg/status", b"Package: bash\nStatus: install ok installed\nVersion: 5.2-1\n"),
)
NUMPY = layer(File("env/numpy-2.1.dist-info/METADATA", b"x" * 5_000_000))
MANY = layer(*(File(f"env/p{number}-1.dist-info/METADATA") for number in range(8)))
HISTORY = [
    {"created_by": "import"},
    {"created_by": "ENV a=b", "empty_layer": True},
    {"created_by": "COPY numpy /"},
    {"created_by": "COPY many /"},
    {"created_by": "RUN nothing"},
]


@pytest.fixture
def image(tmp_path: Path) -> Layout:
    return layout(tmp_path / "image", BASE, NUMPY, MANY, layer(), history=HISTORY)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(group, ["images", "show", *arguments], standalone_mode=False)


def shown(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def test_each_layer_is_shown_with_its_sizes_and_what_it_is_made_of(image: Layout) -> None:
    name, config, manifest, size, _, *rows = run(str(image.root)).stdout.splitlines()
    assert name == str(image.root)
    assert manifest.split() == ["manifest", image.descriptors[0]["digest"]]
    assert config.split()[0] == "config"
    total = sum(len(data) for data in (BASE, NUMPY, MANY, layer()))
    assert size.strip() == f"size      {total / 1e6:.1f} MB in 4 layers, stored in {total / 1e6:.1f} MB"
    assert rows == [
        "layer    size  stored  files  made of",
        "    1  0.0 MB  0.0 MB      2  bash 5.2-1",
        "    2  5.0 MB  5.0 MB      1  numpy 2.1",
        "    3  0.0 MB  0.0 MB      8  p0 1, p1 1, p2 1, p3 1, p4 1 and 3 more",
        "    4  0.0 MB  0.0 MB      0  RUN nothing",
    ]


def test_json_has_full_digests_bytes_and_packages(tmp_path: Path) -> None:
    made = layout(tmp_path / "packed", BASE, NUMPY, pack=gzipped)
    document = shown(str(made.root))
    assert document["layers"][1] == {
        "number": 2,
        "diff_id": digest_of(NUMPY),
        "blob": digest_of(gzipped(NUMPY)),
        "size_bytes": len(NUMPY),
        "stored_bytes": len(gzipped(NUMPY)),
        "files": 1,
        "packages": [{"name": "numpy", "version": "2.1"}],
        "created_by": "",
    }
    assert document["size_bytes"] == len(BASE) + len(NUMPY)
    assert document["stored_bytes"] == len(gzipped(BASE)) + len(gzipped(NUMPY))
    assert document["move"] is None


def test_a_move_gets_only_the_layers_that_the_origin_lacks(image: Layout, tmp_path: Path) -> None:
    origin = layout(tmp_path / "origin", layer(File("other")), NUMPY, layer())
    move = shown(str(image.root), "--from", str(origin.root))["move"]
    size = len(BASE) + len(MANY)
    assert move == {
        "origin": str(origin.root),
        "layers": [1, 3],
        "stored_bytes": size,
        "size_bytes": size,
    }
    told = run(str(image.root), "--from", str(origin.root)).stdout.splitlines()
    assert told[-2].startswith(f"coming from {origin.root}: 2 of 4 layers to get, ")
    assert told[-1] == "  layers 1, 3"


def test_a_move_to_the_same_image_costs_nothing(image: Layout) -> None:
    move = shown(str(image.root), "--from", str(image.root))["move"]
    assert (move["layers"], move["stored_bytes"]) == ([], 0)
    assert "0 of 4 layers to get, 0.0 MB" in run(str(image.root), "--from", str(image.root)).stdout


def test_names_from_the_image_are_escaped(tmp_path: Path) -> None:
    files = layer(File("env/\x1bx-1\udcff.dist-info/METADATA"))
    made = layout(tmp_path / "image", files, layer(), history=[{"created_by": "\x1b[2J"}] * 2)
    told = run(str(made.root)).stdout
    assert "\x1b" not in told
    assert "\\x1bx 1\\\\udcff" in told or "\\x1bx 1\\udcff" in told
    assert shown(str(made.root))["layers"][0]["packages"][0]["version"] == "1\\udcff"


def test_a_broken_layout_and_an_unknown_tag_are_errors(image: Layout, tmp_path: Path) -> None:
    (image.root / "blobs/sha256" / digest_of(NUMPY)[7:]).write_bytes(NUMPY[:1000])
    assert isinstance(run(str(image.root)).exception, BrokenImageError)
    (tmp_path / "project/images").mkdir(parents=True)
    (tmp_path / "project/pyproject.toml").write_text("")
    arguments = ["--project", str(tmp_path / "project"), "images", "show", "e0009-1a2b3c4d"]
    found = CliRunner().invoke(group, arguments, standalone_mode=False)
    assert isinstance(found.exception, UnknownEpochError)


def test_the_budget_of_the_project_s_image_is_shown_with_what_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"config": {"Labels": {"org.opencontainers.image.title": "vllm-cpu"}}}
    made = layout(tmp_path / "titled", NUMPY, **labels)
    monkeypatch.chdir(ROOT)
    assert f"budget    0% of {shipped_image().constraints.image_mib:,} MiB" in run(str(made.root)).stdout
    monkeypatch.chdir(tmp_path)
    assert "MiB" not in run(str(made.root)).stdout
