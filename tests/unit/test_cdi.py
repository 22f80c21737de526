"""Names of NVIDIA GPUs in CDI specifications; data/cdi/README.md says where they are from."""

import json
from pathlib import Path

import pytest

from repro_image.adapters.cdi import device_names, parse_device_names

DATA = Path(__file__).parents[1] / "data/cdi"
UUID = "GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c"


def test_the_names_in_nvidia_ctks_yaml_are_read() -> None:
    assert parse_device_names((DATA / "nvidia.yaml").read_text()) == ("0", UUID, "all")


def test_the_names_in_nvidia_ctks_json_are_read() -> None:
    devices = [{"name": name, "containerEdits": {}} for name in ("0", UUID, "all")]
    text = json.dumps({"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices})
    assert parse_device_names(text) == ("0", UUID, "all")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kind: example.com/device\ndevices:\n  - name: all\n",
        'devices:\n  - name: "0"\n',
        '{"kind": "example.com/gpu", "devices": [{"name": "0"}]}',
        '{"kind": "nvidia.com/gpu"}',
        '{"kind": "nvidia.com/gpu", "devices": 7}',
        "[]",
        "7",
    ],
)
def test_other_specifications_and_broken_ones_name_no_gpu(text: str) -> None:
    assert parse_device_names(text) == ()


def test_specifications_are_read_from_all_folders_and_others_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/nvidia.yaml").write_text((DATA / "nvidia.yaml").read_text())
    (tmp_path / "b/more.json").write_text('{"kind": "nvidia.com/gpu", "devices": [{"name": "GPU-1"}]}')
    (tmp_path / "b/notes.txt").write_text((DATA / "nvidia.yaml").read_text().replace("all", "none"))
    (tmp_path / "b/folder.yaml").mkdir()
    folders = [str(tmp_path / name) for name in ("a", "b", "missing")]
    assert device_names(folders) == {"0", UUID, "all", "GPU-1"}
