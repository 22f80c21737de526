from collections.abc import Iterator
from pathlib import Path

import pytest

from repro_image.adapters import debian
from repro_image.adapters.debian import (
    deb_urls,
    make_root,
    parse_index_targets,
    parse_mirror_list,
    parse_packages,
    parse_print_uris,
    parse_release_date,
    resolve_debs,
)
from repro_image.core.lockfile import DebianLock, LockedDeb, parse_json_lock, print_json_lock
from repro_image.core.project import DebianBase, Settings
from repro_image.core.reference import sha256_digest
from repro_image.errors import (
    CommandFailedError,
    MissingProgramError,
    NoDebianSourceError,
    UnresolvableDebianError,
)

DATA = Path(__file__).parent.parent / "data/debian"
BASE = DebianBase(suite="bookworm", packages={"python3": "runs vLLM"})
LIBSSL3 = "sha256:cb4784740daa9b3b0eaea2b444bbefa686794afbbf3d678d238c1fd9875f2efd"
ZLIB1G = "sha256:d7dd1d1411fedf27f5e27650a6eff20ef294077b568f4c8c5e51466dc7c08ce4"


def read(name: str) -> str:
    return (DATA / name).read_text(encoding="utf-8")


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that has neither apt nor mmdebstrap."""
    debian._machine_sites.cache_clear()
    monkeypatch.setattr(debian, "_PATH", "/nonexistent")
    yield
    debian._machine_sites.cache_clear()


@pytest.fixture
def libssl3() -> LockedDeb:
    return parse_packages(read("Packages-bookworm-security.txt"), [LIBSSL3], archive="bookworm-security")[
        LIBSSL3
    ]


@pytest.fixture
def zlib1g() -> LockedDeb:
    return parse_packages(read("Packages-bookworm.txt"), [ZLIB1G], archive="bookworm")[ZLIB1G]


def test_each_archive_has_the_site_that_apt_uses_for_it() -> None:
    assert parse_index_targets(read("indextargets.txt")) == {
        "bookworm": "http://mirror.example/debian",
        "bookworm-updates": "http://mirror.example/debian",
        "bookworm-security": "http://mirror.example/debian-security",
        "trixie": "http://mirror.example/debian",
    }


def test_only_the_first_site_and_only_main_count() -> None:
    text = "Packages bookworm contrib http://c/debian\nPackages bookworm main http://a/debian\n"
    text += "Packages bookworm main http://b/debian\nTranslations bookworm main http://d/debian\n"
    assert parse_index_targets(text) == {"bookworm": "http://a/debian"}


def test_print_uris_names_the_chosen_packages_by_hash() -> None:
    digests = parse_print_uris(read("print-uris.txt"))
    assert len(digests) == 4
    assert digests[0] == ZLIB1G
    assert digests[2] == LIBSSL3


def test_a_package_is_read_from_the_index_with_epoch_and_pool_path(zlib1g: LockedDeb) -> None:
    assert zlib1g == LockedDeb(
        name="zlib1g",
        version="1:1.2.13.dfsg-1",
        architecture="amd64",
        sha256=ZLIB1G,
        size_bytes=86684,
        path="pool/main/z/zlib/zlib1g_1.2.13.dfsg-1_amd64.deb",
        archive="bookworm",
    )


def test_another_version_of_a_chosen_package_is_not_taken() -> None:
    assert parse_packages(read("Packages-bookworm.txt"), [LIBSSL3], archive="bookworm") == {}


def test_packages_with_an_epoch_survive_the_lock(zlib1g: LockedDeb, libssl3: LockedDeb) -> None:
    digest = sha256_digest(b"")
    lock = DebianLock(
        inputs=digest, suite="bookworm", source_date_epoch=1, root=digest, packages=(libssl3, zlib1g)
    )
    assert parse_json_lock(print_json_lock(lock), DebianLock, path="debian.json", image="vllm-cpu") == lock


def test_the_date_of_a_release_file_is_utc() -> None:
    assert parse_release_date(read("InRelease-bookworm-security.txt")) == 1795133561


def test_a_mirror_list_stands_for_its_first_address() -> None:
    text = "# priorities\n\nhttps://a.example/debian/\tpriority:1\nhttps://b.example/debian\n"
    assert parse_mirror_list(text) == "https://a.example/debian/"
    assert parse_mirror_list("# nothing\n") is None


def test_the_mirror_of_the_settings_has_one_folder_for_each_archive(
    libssl3: LockedDeb, zlib1g: LockedDeb
) -> None:
    settings = Settings(debian_mirror="https://mirror.example/")
    assert deb_urls(zlib1g, settings) == (f"https://mirror.example/debian/{zlib1g.path}",)
    assert deb_urls(libssl3, settings) == (f"https://mirror.example/debian-security/{libssl3.path}",)


def test_the_snapshot_comes_after_the_mirror_and_may_place_the_archive(libssl3: LockedDeb) -> None:
    settings = Settings(
        debian_mirror="https://mirror.example",
        debian_snapshot="https://snap.example/archive/{archive}/20261121T000000Z/",
    )
    assert deb_urls(libssl3, settings) == (
        f"https://mirror.example/debian-security/{libssl3.path}",
        f"https://snap.example/archive/debian-security/20261121T000000Z/{libssl3.path}",
    )


def test_a_plus_in_a_pool_path_is_quoted(zlib1g: LockedDeb) -> None:
    digest = "sha256:48fec46bda7f5b1638b9e959889bfbc20491247d402d120bb152687eb48143d7"
    libgomp1 = parse_packages(read("Packages-bookworm.txt"), [digest], archive="bookworm")[digest]
    (url,) = deb_urls(libgomp1, Settings(debian_mirror="https://mirror.example"))
    assert url.endswith("/libgomp1_12.2.0-14%2Bdeb12u1_amd64.deb")


@pytest.mark.usefixtures("no_programs")
def test_without_apt_the_snapshot_alone_is_asked(zlib1g: LockedDeb) -> None:
    settings = Settings(debian_snapshot="https://snap.example/")
    assert deb_urls(zlib1g, settings) == (f"https://snap.example/debian/{zlib1g.path}",)


@pytest.mark.usefixtures("no_programs")
def test_without_apt_and_settings_the_error_names_debian_mirror(zlib1g: LockedDeb) -> None:
    with pytest.raises(NoDebianSourceError) as caught:
        deb_urls(zlib1g, Settings())
    assert caught.value.exit_code == 5
    assert str(caught.value) == (
        "this machine's apt knows no mirror of the Debian archive bookworm\n"
        "  where: apt-get indextargets\n"
        "  fix:   run `apt-get update`, or set `debian_mirror` in [tool.repro-image] of pyproject.toml"
    )


@pytest.mark.usefixtures("no_programs")
def test_without_mmdebstrap_the_error_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(MissingProgramError) as caught:
        make_root({}, source_date_epoch=1, workspace=tmp_path)
    assert caught.value.exit_code == 5
    assert str(caught.value) == (
        "the program mmdebstrap is not installed\n"
        "  where: PATH, searched for mmdebstrap\n"
        "  fix:   install it with `apt-get install mmdebstrap`; "
        "the Debian root file system is made on Debian machines"
    )


@pytest.mark.usefixtures("no_programs")
def test_without_apt_nothing_can_be_resolved(tmp_path: Path) -> None:
    with pytest.raises(MissingProgramError, match="apt-get is not installed"):
        resolve_debs(BASE, settings=Settings(debian_mirror="https://m.example"), workspace=tmp_path)


def test_a_failed_command_is_told_with_its_last_lines() -> None:
    error = CommandFailedError("mmdebstrap --variant=essential", exit_code=25, lines=("E: one", "E: two"))
    assert str(error) == (
        "the command ended with exit code 25\n    | E: one\n    | E: two\n"
        "  where: mmdebstrap --variant=essential\n"
        "  fix:   read its last lines; nothing was changed"
    )


def test_a_long_command_is_cut_in_the_message_only() -> None:
    error = CommandFailedError("x" * 1000, exit_code=1, lines=())
    assert error.where == "x" * 300 + "…"
    assert error.command == "x" * 1000


def test_unknown_packages_are_a_fault_of_image_toml() -> None:
    error = UnresolvableDebianError(
        ("nosuch",), suite="Debian bookworm", lines=("E: Unable to locate package nosuch",)
    )
    assert error.exit_code == 3
    assert str(error) == (
        "Debian bookworm cannot install nosuch\n    | E: Unable to locate package nosuch\n"
        "  where: image.toml, [base.packages]\n"
        "  fix:   name packages that this suite has"
    )
