import os
from pathlib import Path

import pytest

from repro_image.adapters.model_folder import lay_out_copy, model_folder_digest
from repro_image.core.canonical import canonical_digest
from repro_image.core.lockfile import ModelFile
from repro_image.core.reference import sha256_digest
from repro_image.errors import UnsafeModelError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": []}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "sub/a.txt").write_text("x")
    return folder


def refused(folder: Path) -> UnsafeModelError:
    with pytest.raises(UnsafeModelError) as caught:
        model_folder_digest(folder)
    assert caught.value.exit_code == 3
    return caught.value


def test_the_digest_is_made_as_the_model_locks(model: Path) -> None:
    files = tuple(
        ModelFile(path=name, sha256=sha256_digest(data), size_bytes=len(data))
        for name, data in (
            ("config.json", b'{"architectures": []}'),
            ("model.safetensors", b"weights"),
            ("sub/a.txt", b"x"),
            ("tokenizer.json", b"{}"),
        )
    )
    assert model_folder_digest(model) == canonical_digest(files)


def test_times_and_modes_do_not_count_and_content_and_names_do(model: Path) -> None:
    before = model_folder_digest(model)
    os.utime(model / "sub/a.txt", (1, 1))
    (model / "sub/a.txt").chmod(0o600)
    (model / "empty").mkdir()
    assert model_folder_digest(model) == before
    (model / "sub/a.txt").rename(model / "sub/b.txt")
    assert model_folder_digest(model) != before


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "a.PT", "sub/x.pkl", "modeling_x.py", "x.ckpt", "x.pth"]
)
def test_a_file_that_runs_code_when_loaded_is_refused(model: Path, name: str) -> None:
    (model / name).write_bytes(b"x")
    error = refused(model)
    assert (error.path, error.reason) == (
        str(model / name),
        "files of this kind run code when they are loaded",
    )


@pytest.mark.parametrize("target", ["/etc/passwd", "/etc", "config.json", "nowhere", "."])
def test_a_link_is_refused_wherever_it_leads(model: Path, target: str) -> None:
    (model / "link.json").symlink_to(target)
    error = refused(model)
    assert (error.path, error.reason) == (str(model / "link.json"), "it is no regular file")


def test_a_pipe_is_refused_and_not_read(model: Path) -> None:
    os.mkfifo(model / "pipe")
    assert refused(model).reason == "it is no regular file"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"auto_map": {"AutoModel": "m.M"}}', "`auto_map` asks to run the model's own code"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_setting_that_asks_for_code_or_is_no_json_is_refused(model: Path, text: str, reason: str) -> None:
    (model / "tokenizer_config.json").write_text(text)
    error = refused(model)
    assert error.path == str(model / "tokenizer_config.json")
    assert error.reason.startswith(reason)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("config.json", "there is no config.json"),
        ("model.safetensors", "there are no weights in safetensors"),
        ("tokenizer.json", "there is no tokenizer"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(model: Path, name: str, reason: str) -> None:
    (model / name).unlink()
    error = refused(model)
    assert (error.path, error.reason) == (str(model), reason)


def test_a_folder_that_lacks_a_weight_of_its_index_is_refused(model: Path) -> None:
    index = model / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}')
    error = refused(model)
    assert (error.path, error.reason) == (
        str(index),
        "it names files that are not there: model-2.safetensors",
    )


def test_a_private_folder_is_laid_out_so_that_a_container_can_read_it(tmp_path: Path) -> None:
    private = tmp_path / "private"
    (private / "sub").mkdir(parents=True)
    (private / "config.json").write_text("{}")
    (private / "sub" / "weights.safetensors").write_bytes(b"w")
    (private / "model.safetensors").write_bytes(b"w")
    (private / "tokenizer.json").write_text("{}")
    for path in (private / "config.json", private / "sub", private):
        path.chmod(0o700)
    laid_out = lay_out_copy(private, tmp_path / "copy")
    assert {path.relative_to(laid_out).as_posix() for path in laid_out.rglob("*")} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "sub",
        "sub/weights.safetensors",
    }
    assert all(path.stat().st_mode & 0o005 for path in (laid_out, *laid_out.rglob("*")))
    assert model_folder_digest(laid_out) == model_folder_digest(private)
