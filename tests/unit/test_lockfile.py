import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from repro_image.core.lockfile import (
    DebianLock,
    GgufLock,
    HubLock,
    LockedDeb,
    LockedWheel,
    ModelFile,
    ModelLock,
    RequirementsLock,
    parse_json_lock,
    parse_model_lock,
    parse_requirements,
    print_json_lock,
    print_pin,
    print_requirements,
)
from repro_image.core.reference import sha256_digest
from repro_image.errors import EditedLockError, InvalidFileError
from tests.unit.made_locks import DIGEST, ROOT, make_locks

PATH = "locks/vllm-cpu/requirements.txt"

_digests = st.binary(max_size=4).map(sha256_digest)
_names = st.from_regex(r"[a-z0-9]{1,5}(-[a-z0-9]{1,5}){0,2}", fullmatch=True)
_versions = st.from_regex(r"[0-9][A-Za-z0-9.+!_-]{0,8}", fullmatch=True)
_sizes = st.integers(min_value=0, max_value=10**13)
_wheels = st.builds(
    LockedWheel,
    name=_names,
    version=_versions,
    sha256=_digests,
    filename=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+!-]{0,20}\.whl", fullmatch=True),
    size_bytes=_sizes,
    source=_names,
)
_locks = st.builds(
    RequirementsLock,
    inputs=_digests,
    resolver=st.from_regex(r"[a-z-]{2,9} [0-9]\.[0-9]{1,2}", fullmatch=True),
    python=st.from_regex(r"3\.[0-9]{2}\.[0-9]", fullmatch=True),
    root=_digests,
    installer=_wheels,
    wheels=st.lists(_wheels, max_size=5, unique_by=lambda wheel: wheel.name).map(
        lambda wheels: tuple(sorted(wheels, key=lambda wheel: wheel.name))
    ),
)
_debs = st.builds(
    LockedDeb,
    name=st.from_regex(r"[a-z0-9][a-z0-9+.-]{1,8}", fullmatch=True),
    version=st.from_regex(r"([0-9]:)?[0-9][A-Za-z0-9.+~-]{0,8}", fullmatch=True),
    architecture=st.sampled_from(("amd64", "all")),
    sha256=_digests,
    size_bytes=_sizes,
    path=st.from_regex(r"pool/main/[a-z]/[A-Za-z0-9_+~-]{1,9}\.deb", fullmatch=True),
    archive=st.sampled_from(("bookworm", "bookworm-updates", "bookworm-security")),
)
_debian_locks = st.builds(
    DebianLock,
    inputs=_digests,
    suite=st.just("bookworm"),
    source_date_epoch=st.integers(1, 2**40),
    root=_digests,
    packages=st.lists(_debs, max_size=3).map(tuple),
)
_model_files = st.lists(
    st.builds(ModelFile, path=st.sampled_from(("a.json", "b/c.bin")), sha256=_digests, size_bytes=_sizes),
    max_size=2,
).map(tuple)
_hub_locks = st.builds(
    HubLock,
    inputs=_digests,
    repository=st.sampled_from(("gpt2", "HuggingFaceTB/SmolLM2-1.7B-Instruct")),
    commit=st.text("0123456789abcdef", min_size=40, max_size=40),
    license=st.just("Apache-2.0"),
    files=_model_files,
)
_gguf_locks = st.builds(
    GgufLock,
    inputs=_digests,
    name=_names,
    license=st.text(st.characters(codec="utf-8"), max_size=9),
    source=_wheels,
    member=st.just("a/b.gguf"),
    converter=st.just("gguf-to-safetensors 1"),
    files=_model_files,
)

TEXT = print_requirements(
    make_locks(
        "numpy-2.1.0-cp311-cp311-linux_x86_64.whl", "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl"
    ).requirements
)


def parse(text: str) -> RequirementsLock:
    return parse_requirements(text, path=PATH, image="vllm-cpu")


def refused(text: str) -> InvalidFileError:
    with pytest.raises(InvalidFileError) as caught:
        parse(text)
    error = caught.value
    assert (error.exit_code, error.where) == (3, PATH)
    assert f"git checkout -- {PATH}" in error.fix
    assert "repro-image lock vllm-cpu" in error.fix
    return error


@given(_locks)
def test_a_printed_requirements_lock_parses_back_to_itself(lock: RequirementsLock) -> None:
    assert parse(print_requirements(lock)) == lock


@given(_debian_locks)
def test_a_printed_debian_lock_parses_back_to_itself(lock: DebianLock) -> None:
    assert parse_json_lock(print_json_lock(lock), DebianLock, path="debian.json", image="x") == lock


@given(_gguf_locks | _hub_locks)
def test_a_printed_model_lock_parses_back_to_itself(lock: ModelLock) -> None:
    assert parse_model_lock(print_json_lock(lock), path="model.json", image="x") == lock


@given(st.integers(0, len(TEXT) - 1), st.characters(codec="utf-8"))
def test_any_changed_character_is_refused(place: int, character: str) -> None:
    changed = TEXT[:place] + character + TEXT[place + 1 :]
    if changed != TEXT:
        with pytest.raises((InvalidFileError, EditedLockError)):
            parse(changed)


@given(st.text(max_size=80))
def test_any_text_is_refused_with_exit_code_3(text: str) -> None:
    with pytest.raises(InvalidFileError):
        parse_json_lock(text, DebianLock, path="x.json", image="x")
    with pytest.raises(InvalidFileError):
        parse_model_lock(text, path="x.json", image="x")
    refused(text)


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://evil.example/simple",
        "--extra-index-url=https://evil.example/simple",
        "--find-links /tmp",
        "--trusted-host evil.example",
        "-e .",
        "-r other.txt",
        "-c other.txt",
        "evil @ https://evil.example/evil.whl",
        "evil @ git+https://evil.example/evil.git",
        "git+https://evil.example/evil.git#egg=evil",
        "./evil.whl",
        "numpy>=2",
        "numpy",
        "<<<<<<< HEAD",
        "# a comment",
        " ",
        "",
    ],
)
def test_a_line_that_is_no_pin_is_refused_with_its_number(line: str) -> None:
    number = TEXT.count("\n") + 1
    what = refused(f"{TEXT}{line}\n").what
    assert what == f"line {number} is refused: only hashed pins are allowed; found {line!r}"


def test_a_pin_without_a_hash_is_refused_with_its_number() -> None:
    number = TEXT.count("\n") + 1
    assert refused(TEXT + "zlib==1\n").what == (
        f"line {number} is refused: a pin needs `--hash=sha256:…`; found 'zlib==1'"
    )


def test_a_removed_hash_is_refused_with_its_number() -> None:
    line = next(line for line in TEXT.splitlines() if line.startswith("numpy=="))
    without = line.replace(line.split()[1] + "  ", " ")
    assert refused(TEXT.replace(line, without)).what.startswith("line 9 is refused: a pin needs `--hash=")


def test_a_second_hash_of_one_pin_is_refused() -> None:
    line = next(line for line in TEXT.splitlines() if line.startswith("numpy=="))
    double = line.replace("  #", " --hash=sha256:" + "1" * 64 + "  #")
    assert "line 9 is refused" in refused(TEXT.replace(line, double)).what


def test_cr_lf_is_refused_with_its_line() -> None:
    assert refused(TEXT.replace("\n", "\r\n")).what == "line 1 ends in CR LF; locks end lines in LF"
    lines = TEXT.split("\n")
    lines[8] += "\r"
    assert refused("\n".join(lines)).what == "line 9 ends in CR LF; locks end lines in LF"


def _swapped(text: str) -> str:
    *head, first, second, end = text.split("\n")
    return "\n".join([*head, second, first, end])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text + text.splitlines()[-1] + "\n", "line 11 pins torch a second time"),
        (_swapped, "line 10 pins numpy after torch, out of order"),
    ],
)
def test_duplicate_and_unsorted_pins_are_refused_with_their_line(
    change: Callable[[str], str], told: str
) -> None:
    assert refused(change(TEXT)).what == told


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("numpy==2.1.0 ", "numpy==2.1.1 "),
        ("sha256:" + "0" * 64 + "  # numpy", "sha256:" + "1" * 64 + "  # numpy"),
        ("# resolver: pip-tools 7.6.2", "# resolver: pip-tools 7.6.3"),
        ("# python: 3.11.2", "# python: 3.11.3"),
        ("# root: sha256:0", "# root: sha256:1"),
        ("# inputs: sha256:0", "# inputs: sha256:1"),
        ("# installer: uv==0.9.1", "# installer: uv==0.9.2"),
    ],
)
def test_a_hand_edit_that_looks_right_is_seen_by_its_content(old: str, new: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(EditedLockError) as caught:
        parse(TEXT.replace(old, new))
    assert (caught.value.exit_code, caught.value.where) == (3, PATH)


def test_a_removed_pin_is_seen_by_its_content() -> None:
    with pytest.raises(EditedLockError):
        parse("\n".join(line for line in TEXT.split("\n") if not line.startswith("numpy")))


@pytest.mark.parametrize("count", range(1, 9))
def test_a_lock_cut_short_is_refused(count: int) -> None:
    refused("\n".join(TEXT.split("\n")[:count]))
    refused(TEXT[:-1])


def test_a_pin_is_one_line_that_installers_read() -> None:
    wheel = replace(make_locks("a-1-py3-none-any.whl").requirements.wheels[0], size_bytes=7, source="x")
    assert print_pin(wheel) == f"a==1 --hash=sha256:{'0' * 64}  # a-1-py3-none-any.whl 7 bytes from x"


@pytest.mark.parametrize("path", sorted(ROOT.glob("locks/*/model.json")), ids=lambda path: path.parent.name)
def test_a_committed_model_lock_is_printed_as_it_stands(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert print_json_lock(parse_model_lock(text, path=str(path), image="x")) == text


HUB = print_json_lock(
    HubLock(
        inputs=DIGEST,
        repository="team/tiny",
        commit="0" * 40,
        license="MIT",
        files=(ModelFile(path="config.json", sha256=DIGEST, size_bytes=1),),
    )
)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"team/tiny"', '"../tiny"', "`$.repository`"),
        ('"commit": "', '"commit": "main', "`$.commit`"),
        ('"config.json"', '"../config.json"', "`$.files[0].path`"),
        ('"size_bytes": 1', '"size_bytes": -1', "`$.files[0].size_bytes`"),
        ('"license": "MIT"', '"license": "MIT", "member": "a"', "unknown field `member`"),
        ('"repository": "team/tiny"', '"member": "a"', "unknown field `commit`"),
    ],
)
def test_a_hub_lock_of_another_form_is_refused_with_its_key_path(old: str, new: str, told: str) -> None:
    assert HUB.count(old) == 1
    with pytest.raises(InvalidFileError) as caught:
        parse_model_lock(HUB.replace(old, new), path="locks/x/model.json", image="x")
    assert told in caught.value.what


def test_a_hub_lock_edited_by_hand_is_seen() -> None:
    with pytest.raises(EditedLockError):
        parse_model_lock(HUB.replace("MIT", "GPL"), path="locks/x/model.json", image="x")


JSON = print_json_lock(make_locks().base)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "`$.content` is missing"),
        ("{}", "`$.content` is missing"),
        ('{"content": 3}', "`$.content` is missing"),
        ("[" * 100_000, "not JSON"),
        (JSON.replace('"suite": "bookworm"', '"suite": 3'), "Expected `str`, got `int` - at `$.suite`"),
        (JSON.replace('"suite"', '"suit"'), "unknown field `suit`"),
        (JSON.replace('"format": 1', '"format": 2'), "`$.format`"),
        (JSON.replace("pool/main", "/pool/main"), "`$.packages[0].path`"),
        (JSON.replace("pool/main/g", "pool/../g"), "`$.packages[0].path`"),
        (JSON.replace('"name": "libc6"', '"name": "-o=x"'), "`$.packages[0].name`"),
    ],
)
def test_a_json_lock_in_another_form_is_refused_with_its_key_path(text: str, told: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        parse_json_lock(text, DebianLock, path="locks/x/debian.json", image="x")
    assert told in caught.value.what
    assert caught.value.where == "locks/x/debian.json"


def test_a_hand_edit_of_a_json_lock_is_seen_by_its_content() -> None:
    fields = json.loads(JSON)
    fields["source_date_epoch"] += 1
    with pytest.raises(EditedLockError) as caught:
        parse_json_lock(json.dumps(fields), DebianLock, path="locks/x/debian.json", image="x")
    assert caught.value.expected == fields["content"]
