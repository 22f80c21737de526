import msgspec
import pytest
from msgspec.structs import replace

from repro_image.adapters.base_image import installed_version, parse_os_release
from repro_image.adapters.debian import deb_urls
from repro_image.adapters.files import Project
from repro_image.core.dockerfile import base_values, render_root
from repro_image.core.inputs import base_inputs
from repro_image.core.lockfile import BaseLock, LockedDeb, parse_json_lock, print_json_lock
from repro_image.core.oci import Descriptor, Index, PlatformName, for_platform, parse_config, platforms
from repro_image.core.project import DebianBase, RegistryBase, Settings
from repro_image.core.reference import is_tagged_image
from repro_image.errors import EditedLockError, InvalidFileError
from tests.scratch import REPOSITORY
from tests.unit.made_locks import DIGEST, make_locks, shipped_image

REFERENCE = "docker.io/nvidia/cuda:13.0.3-base-ubuntu24.04"
DEB = LockedDeb(
    name="python3",
    version="3.12.3-0ubuntu2",
    architecture="amd64",
    sha256=DIGEST,
    size_bytes=1,
    path="pool/main/p/python3-defaults/python3_3.12.3-0ubuntu2_amd64.deb",
    archive="noble",
)
LOCK = BaseLock(
    inputs=DIGEST,
    reference=REFERENCE,
    index=DIGEST,
    manifest="sha256:" + "1" * 64,
    config="sha256:" + "2" * 64,
    distribution="ubuntu",
    installed_libc6="2.39-0ubuntu8",
    source_date_epoch=1_700_000_000,
    packages=(DEB,),
)
BASE = RegistryBase(reference=REFERENCE, packages={"python3": "runs vLLM"})
OS_RELEASE = """\
PRETTY_NAME="Ubuntu 24.04.3 LTS"
# a comment
ID=ubuntu
VERSION_CODENAME='noble'
"""
STATUS = """\
Package: apt
Status: install ok installed
Version: 2.7.14build2

Package: gone
Status: deinstall ok config-files
Version: 1

Package: libc6
Status: install ok installed
Version: 2.39-0ubuntu8.6
"""


@pytest.mark.parametrize("index", [DIGEST, None])
def test_a_printed_base_lock_parses_back_to_itself(index: str | None) -> None:
    lock = replace(LOCK, index=index)
    assert parse_json_lock(print_json_lock(lock), BaseLock, path="base.json", image="x") == lock


def test_an_edited_digest_of_a_base_lock_is_seen() -> None:
    text = print_json_lock(LOCK).replace("1" * 64, "3" * 64)
    with pytest.raises(EditedLockError):
        parse_json_lock(text, BaseLock, path="base.json", image="x")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("manifest", "sha256:1"),
        ("distribution", "alpine"),
        ("source_date_epoch", 0),
        ("more", 1),
        ("config", None),
    ],
)
def test_a_wrong_value_in_a_base_lock_names_its_key(field: str, value: object) -> None:
    fields = {**msgspec.to_builtins(LOCK), field: value, "content": DIGEST}
    with pytest.raises(InvalidFileError, match=field):
        parse_json_lock(msgspec.json.encode(fields).decode(), BaseLock, path="base.json", image="x")


def test_the_root_is_the_base_and_what_is_installed_on_it_whatever_the_tag_is_called() -> None:
    others = (replace(LOCK, config=DIGEST), replace(LOCK, packages=()))
    assert len({LOCK.root, *(other.root for other in others)}) == 3
    assert replace(LOCK, reference="a.io/b:c", index=None).root == LOCK.root


def test_the_c_library_is_that_of_the_packages_on_top_where_they_bring_one() -> None:
    newer = replace(DEB, name="libc6", version="2.39-0ubuntu9")
    assert LOCK.libc6 == "2.39-0ubuntu8"
    assert replace(LOCK, packages=(newer, DEB)).libc6 == "2.39-0ubuntu9"


def test_another_reference_or_package_makes_the_lock_stale_and_another_reason_does_not() -> None:
    others = (replace(BASE, reference="a.io/b:c"), replace(BASE, packages={"gcc": "runs vLLM"}))
    assert len({base_inputs(base) for base in (BASE, *others)}) == 3
    assert base_inputs(replace(BASE, packages={"python3": "why not"})) == base_inputs(BASE)


def test_a_registry_base_and_a_debian_base_never_have_the_same_input() -> None:
    debian = DebianBase(suite="noble", packages=BASE.packages)
    assert base_inputs(debian) != base_inputs(BASE)


@pytest.mark.parametrize("text", [REFERENCE, "localhost:5000/a:b", "a.io/b/c:latest", "host:1/a:b"])
def test_a_registry_repository_and_tag_make_a_reference(text: str) -> None:
    assert is_tagged_image(text)


@pytest.mark.parametrize(
    "text",
    [
        "debian:12",
        "nvidia/cuda:13",
        "a.io/b",
        "a.io/b@" + DIGEST,
        "a.io/b:c@" + DIGEST,
        "a.io/b:c\n",
        "a.io/B:c",
        "a.io:b",
        "-a.io/b:c",
        "a.io/b:c d",
        "https://a.io/b:c",
        "",
    ],
)
def test_anything_else_is_none(text: str) -> None:
    assert not is_tagged_image(text)


def test_the_stage_root_starts_from_the_digest_and_installs_the_packages_without_a_network() -> None:
    macros = Project(REPOSITORY).templates("vllm-cpu")
    lines = render_root(macros, LOCK, path="x").splitlines()
    assert lines[0] == "ARG SOURCE_DATE_EPOCH=1700000000"
    assert f"FROM {REFERENCE}@sha256:{'1' * 64} AS root" in lines
    assert "RUN --network=none \\" in lines
    assert "RUN" not in render_root(macros, replace(LOCK, packages=()), path="x")


def test_a_debian_root_is_a_build_context_and_no_reference() -> None:
    assert base_values(make_locks().base) == {"image": None, "has_packages": False}
    assert isinstance(shipped_image().base, DebianBase)


def test_packages_of_ubuntu_come_from_its_archive_or_the_mirror_that_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("repro_image.adapters.debian._machine_sites", dict)
    security = replace(DEB, archive="noble-security")
    assert deb_urls(security, Settings(), "ubuntu") == (f"http://archive.ubuntu.com/ubuntu/{DEB.path}",)
    settings = Settings(ubuntu_mirror="https://mirror.example/", debian_snapshot="https://snapshot.example")
    assert deb_urls(DEB, settings, "ubuntu") == (f"https://mirror.example/ubuntu/{DEB.path}",)


def test_an_os_release_file_is_read_with_and_without_quotes() -> None:
    release = parse_os_release(OS_RELEASE)
    assert (release["ID"], release["VERSION_CODENAME"]) == ("ubuntu", "noble")
    assert release["PRETTY_NAME"] == "Ubuntu 24.04.3 LTS"


def test_only_what_dpkg_calls_installed_is_installed() -> None:
    found = {name: installed_version(STATUS, name) for name in ("apt", "libc6", "gone", "nosuch")}
    assert found == {"apt": "2.7.14build2", "libc6": "2.39-0ubuntu8.6", "gone": None, "nosuch": None}


def test_the_plainest_of_several_variants_of_a_platform_is_taken() -> None:
    def one(architecture: str, variant: str | None = None) -> Descriptor:
        platform = PlatformName(architecture=architecture, os="linux", variant=variant)
        return Descriptor(media_type="x", digest=DIGEST, size=1, platform=platform)

    index = Index(manifests=(one("arm64", "v8"), one("amd64", "v3"), one("amd64"), one("amd64", "v2")))
    assert for_platform(index, "linux/amd64") == one("amd64")
    assert for_platform(index, "linux/riscv64") is None
    assert platforms(index.manifests) == ("linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/arm64/v8")


@pytest.mark.parametrize("created", ["null", '"1970-01-01T00:00:00Z"', '"0001-01-01T00:00:00Z"'])
def test_an_image_without_a_time_of_its_own_counts_as_of_1980(created: str) -> None:
    config = parse_config(f'{{"os": "linux", "architecture": "amd64", "created": {created}}}'.encode())
    assert config.created_s == 315_532_800
