import json
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from repro_image.adapters.package_index import IndexFile, PackageIndex, links_page, local_wheels, parse_page
from repro_image.adapters.pip_settings import PipSettings, parse_pip_settings, read_pip_settings, redact
from repro_image.adapters.web import Limits, Page, Web
from repro_image.errors import (
    DownloadError,
    GoneError,
    NoHashError,
    NoWheelError,
    PipConfigurationError,
    UnknownIndexError,
    WrongContentError,
)
from tests.unit.web_server import Server, serving, status, whole
from tests.unit.wheels import LocalIndex, sha256_of, wheel_bytes

TAGS = ("cp311-cp311-manylinux_2_28_x86_64", "cp311-abi3-manylinux_2_28_x86_64", "py3-none-any")
JSON_TYPE = "application/vnd.pypi.simple.v1+json"
DATA = wheel_bytes("thing", "1.0")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def local(tmp_path: Path) -> LocalIndex:
    return LocalIndex(tmp_path / "index")


def package_index(*, indexes: dict[str, str] | None = None, **settings: object) -> PackageIndex:
    found = msgspec.convert({"index_url": None, "timeout_s": 2.0, **settings}, PipSettings)
    return PackageIndex(Web(found, limits=Limits(attempts=2, first_wait_s=0.01)), indexes=indexes or {})


def json_page(*files: dict[str, object]) -> bytes:
    return json.dumps({"meta": {"api-version": "1.1"}, "name": "thing", "files": files}).encode()


def entry(filename: str, data: bytes = DATA, **fields: object) -> dict[str, object]:
    return {
        "filename": filename,
        "url": f"/files/{filename}",
        "hashes": {"sha256": sha256_of(data)},
        "size": len(data),
        **fields,
    }


def test_a_json_page_gives_name_hash_and_size(server: Server) -> None:
    server.answers["/simple/thing/"] = [
        whole(json_page(entry("thing-1.0-py3-none-any.whl")), content_type=JSON_TYPE)
    ]
    index = package_index(index_url=server.url("/simple"))
    wheel = index.choose("thing", "1.0", tags=TAGS)
    assert (wheel.filename, wheel.sha256, wheel.size_bytes, wheel.source) == (
        "thing-1.0-py3-none-any.whl",
        f"sha256:{sha256_of(DATA)}",
        len(DATA),
        "index",
    )
    assert list(index.addresses(wheel)) == [server.url("/files/thing-1.0-py3-none-any.whl")]
    assert len(server.requests) == 1


def test_an_html_page_gives_the_hash_and_the_server_the_size(server: Server) -> None:
    page = f'<a href="../../f/thing-1.0%2Bcpu-py3-none-any.whl#sha256={sha256_of(DATA)}">thing</a>'
    server.answers["/simple/thing/"] = [whole(page.encode(), content_type="text/html; charset=utf-8")]
    server.answers["/f/thing-1.0%2Bcpu-py3-none-any.whl"] = [whole(DATA)]
    wheel = package_index(index_url=server.url("/simple/")).choose("thing", "1.0+cpu", tags=TAGS)
    assert (wheel.filename, wheel.size_bytes) == ("thing-1.0+cpu-py3-none-any.whl", len(DATA))


def test_the_best_tag_wins_then_the_highest_build(server: Server) -> None:
    names = [
        "thing-1.0-py3-none-any.whl",
        "thing-1.0-1-cp311-cp311-manylinux_2_28_x86_64.whl",
        "thing-1.0-12-cp311-cp311-manylinux_2_17_x86_64.manylinux_2_28_x86_64.whl",
        "thing-1.0-99-cp311-abi3-manylinux_2_28_x86_64.whl",
        "thing-1.0-cp312-cp312-manylinux_2_28_x86_64.whl",
        "thing-2.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "thing-1.0.tar.gz",
    ]
    page = json_page(*(entry(name) for name in names))
    server.answers["/simple/thing/"] = [whole(page, content_type=JSON_TYPE)]
    wheel = package_index(index_url=server.url("/simple")).choose("thing", "1.0", tags=TAGS)
    assert wheel.filename == names[2]


def test_a_yanked_wheel_is_the_last_choice(server: Server) -> None:
    page = json_page(
        entry("thing-1.0-cp311-cp311-manylinux_2_28_x86_64.whl", yanked="broken"),
        entry("thing-1.0-py3-none-any.whl"),
    )
    server.answers["/simple/thing/"] = [whole(page, content_type=JSON_TYPE)]
    wheel = package_index(index_url=server.url("/simple")).choose("thing", "1.0", tags=TAGS)
    assert wheel.filename == "thing-1.0-py3-none-any.whl"


def test_an_sdist_is_never_chosen(server: Server) -> None:
    server.answers["/simple/thing/"] = [whole(json_page(entry("thing-1.0.tar.gz")), content_type=JSON_TYPE)]
    with pytest.raises(
        NoWheelError, match=r"there is no wheel of thing 1\.0 that the image can install"
    ) as caught:
        package_index(index_url=server.url("/simple")).choose("thing", "1.0", tags=TAGS)
    assert caught.value.exit_code == 5


def test_a_page_without_hashes_is_refused_by_name(server: Server) -> None:
    page = b'<a href="thing-1.0-py3-none-any.whl">thing</a>'
    server.answers["/simple/thing/"] = [whole(page, content_type="text/html")]
    with pytest.raises(NoHashError, match=r"the index gives no sha256 for thing-1\.0-py3-none-any\.whl"):
        package_index(index_url=server.url("/simple")).choose("thing", "1.0", tags=TAGS)
    assert [path for path, _ in server.requests] == ["/simple/thing/"]


def test_a_local_index_is_read_and_its_files_hashed(local: LocalIndex) -> None:
    path = local.add("thing-1.0-py3-none-any.whl", DATA, with_hash=False)
    index = package_index(index_url=local.url)
    wheel = index.choose("thing", "1.0", tags=TAGS)
    assert wheel.sha256 == f"sha256:{sha256_of(DATA)}"
    assert list(index.addresses(wheel)) == [str(path)]


def test_find_links_are_looked_at_before_any_index_is_asked(tmp_path: Path, server: Server) -> None:
    (tmp_path / "thing-1.0-py3-none-any.whl").write_bytes(DATA)
    index = package_index(index_url=server.url("/simple"), find_links=(str(tmp_path),))
    wheel = index.choose("thing", "1.0", tags=TAGS)
    assert next(index.addresses(wheel)) == str(tmp_path / "thing-1.0-py3-none-any.whl")
    assert server.requests == []


def test_a_find_links_page_on_the_network_is_read(server: Server) -> None:
    page = f'<a href="/f/thing-1.0-py3-none-any.whl#sha256={sha256_of(DATA)}">x</a>'
    server.answers["/links.html"] = [whole(page.encode(), content_type="text/html")]
    server.answers["/f/thing-1.0-py3-none-any.whl"] = [whole(DATA)]
    index = package_index(find_links=(server.url("/links.html"),))
    assert index.choose("thing", "1.0", tags=TAGS).size_bytes == len(DATA)
    assert index.has_linked("thing", SpecifierSet(">=1"), tags=TAGS)
    assert not index.has_linked("thing", SpecifierSet(">=2"), tags=TAGS)
    assert not index.has_linked("other", SpecifierSet(), tags=TAGS)


def test_an_extra_index_comes_before_the_main_one_so_no_public_name_shadows_a_private_one(
    server: Server, local: LocalIndex
) -> None:
    public = json_page(entry("thing-1.0-cp311-cp311-manylinux_2_28_x86_64.whl", b"squatted"))
    server.answers["/simple/thing/"] = [whole(public, content_type=JSON_TYPE)]
    local.add("thing-1.0-py3-none-any.whl", DATA)
    index = package_index(index_url=server.url("/simple"), extra_index_urls=(local.url,))
    assert index.choose("thing", "1.0", tags=TAGS).sha256 == f"sha256:{sha256_of(DATA)}"
    assert server.requests == []


def test_a_mapped_project_is_looked_for_in_its_own_index_only(server: Server, local: LocalIndex) -> None:
    local.add("thing-1.0-py3-none-any.whl", b"general")
    server.answers["/cpu/thing/"] = [
        whole(json_page(entry("thing-1.0-py3-none-any.whl")), content_type=JSON_TYPE)
    ]
    index = package_index(index_url=local.url, indexes={"cpu": server.url("/cpu")})
    wheel = index.choose("thing", "1.0", tags=TAGS, source="cpu")
    assert (wheel.sha256, wheel.source) == (f"sha256:{sha256_of(DATA)}", "cpu")
    with pytest.raises(NoWheelError, match="source cpu"):
        index.choose("thing", "9.9", tags=TAGS, source="cpu")


def test_a_mapped_project_in_find_links_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "thing-1.0+cpu-py3-none-any.whl").write_bytes(DATA)
    index = package_index(find_links=(str(tmp_path),), indexes={"cpu": "http://nowhere.invalid"})
    assert index.choose("thing", "1.0+cpu", tags=TAGS, source="cpu").source == "cpu"


def test_an_unknown_index_name_says_where_to_write_it() -> None:
    with pytest.raises(UnknownIndexError) as caught:
        package_index(indexes={"cpu": "http://nowhere.invalid"}).choose(
            "thing", "1.0", tags=TAGS, source="gpu"
        )
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "no address is known for the index 'gpu' (known: cpu)\n"
        "  where: pyproject.toml: [tool.repro-image.indexes]\n"
        '  fix:   add `gpu = "https://…"` there, or correct [python.sources] in image.toml'
    )


def test_a_reuploaded_wheel_is_told_with_both_hashes(local: LocalIndex) -> None:
    path = local.add("thing-1.0-py3-none-any.whl", DATA)
    wheel = package_index(index_url=local.url).choose("thing", "1.0", tags=TAGS)
    page = local.root / "simple" / "thing" / "index.html"
    page.write_text(page.read_text().replace(sha256_of(DATA), "0" * 64))
    path.write_bytes(b"changed")
    with pytest.raises(WrongContentError) as caught:
        list(package_index(index_url=local.url).addresses(wheel))
    assert (caught.value.expected, caught.value.found) == (wheel.sha256, "sha256:" + "0" * 64)


def test_a_deleted_wheel_is_told_with_what_to_do(local: LocalIndex) -> None:
    local.add("thing-1.0-py3-none-any.whl", DATA)
    wheel = package_index(index_url=local.url).choose("thing", "1.0", tags=TAGS)
    (local.root / "simple" / "thing" / "index.html").write_text("<html></html>")
    with pytest.raises(GoneError, match="is in no source any more") as caught:
        list(package_index(index_url=local.url).addresses(wheel))
    assert "repro-image lock -P thing" in caught.value.fix


def test_a_project_that_an_index_does_not_have_is_no_error_there(server: Server, local: LocalIndex) -> None:
    local.add("thing-1.0-py3-none-any.whl", DATA)
    server.answers["/simple/thing/"] = [status(404)]
    index = package_index(index_url=local.url, extra_index_urls=(server.url("/simple"),))
    assert index.choose("thing", "1.0", tags=TAGS).version == "1.0"


def test_an_index_that_answers_nonsense_is_named(server: Server) -> None:
    for body in (b"{", b"[]", b'{"files": [{}]}', b'{"files": 5}', b"\xff\xfe"):
        server.answers["/simple/thing/"] = [whole(body, content_type=JSON_TYPE)]
        with pytest.raises(DownloadError, match="it is not readable"):
            package_index(index_url=server.url("/simple")).choose("thing", "1.0", tags=TAGS)


def test_a_page_from_the_network_cannot_point_at_files_of_this_machine() -> None:
    page = Page(
        url="http://index.example/simple/x/",
        content_type="text/html",
        body=b'<a href="file:///etc/x-1-py3-none-any.whl">',
    )
    assert parse_page(page) == ()


def test_a_links_page_reads_back_as_the_same_files() -> None:
    files = tuple(
        IndexFile(
            filename=f"thing-{version}-py3-none-any.whl",
            project="thing",
            version=Version(version),
            address=f"https://files.example/a/thing-{version.replace('+', '%2B')}-py3-none-any.whl",
            sha256="sha256:" + "a" * 64,
            metadata="sha256=" + "b" * 64,
        )
        for version in ("1.0", "2.0+cpu")
    )
    page = Page(url="https://x.example/", content_type="text/html", body=links_page(files).encode())
    assert parse_page(page) == files


def test_all_wheels_of_local_indexes_are_listed(local: LocalIndex) -> None:
    local.add("thing-1.0-py3-none-any.whl", DATA)
    local.add("other_thing-2.0-py3-none-any.whl", DATA)
    found = list(local_wheels(PipSettings(index_url="https://index.example", extra_index_urls=(local.url,))))
    assert [file.project for file in found] == ["other-thing", "thing"]


@given(st.binary(max_size=300))
def test_no_html_page_ends_in_anything_but_files_or_a_download_error(body: bytes) -> None:
    try:
        files = parse_page(Page(url="https://x.example/", content_type="text/html", body=body))
    except DownloadError:
        return
    assert all(file.filename.endswith(".whl") for file in files)


LISTING = """\
global.cert='/etc/ssl/certs/own.pem'
global.constraint='/etc/pip/constraints.txt'
global.extra-index-url='https://a.example/simple\\nhttps://b.example/simple'
global.find-links='/wheels'
global.timeout='20'
install.find-links='/more /wheels2'
:env:.default-timeout='180'
:env:.index-url='https://me:p%40ss@main.example/simple'
list.format='columns'
"""


def test_the_environment_overrides_the_section_and_the_section_global() -> None:
    settings = parse_pip_settings(
        LISTING, ca=None, environment={"https_proxy": "http://proxy:3128", "X": "y"}
    )
    assert settings.find_links == ("/more", "/wheels2")
    assert settings.timeout_s == 180
    assert settings.index_url == "https://me:p%40ss@main.example/simple"
    assert settings.extra_index_urls == ("https://a.example/simple", "https://b.example/simple")
    assert settings.constraints == ("/etc/pip/constraints.txt",)
    assert settings.proxies == {"https_proxy": "http://proxy:3128"}


def test_no_index_means_find_links_only() -> None:
    settings = parse_pip_settings(
        "global.no-index='true'\nglobal.extra-index-url='https://a.example'", ca=None, environment={}
    )
    assert settings.indexes == ()


def test_the_projects_own_certificates_come_first(tmp_path: Path) -> None:
    own, other = tmp_path / "own.pem", tmp_path / "other.pem"
    own.touch()
    other.touch()
    environment = {"SSL_CERT_FILE": str(other)}
    assert parse_pip_settings("", ca=str(own), environment=environment).ca == str(own)
    assert parse_pip_settings("", ca=None, environment=environment).ca == str(other)
    assert parse_pip_settings("", ca=None, environment={}).ca is not None


def test_credentials_are_redacted_encoded_and_plain() -> None:
    settings = parse_pip_settings(LISTING, ca=None, environment={})
    told = "GET https://me:p%40ss@main.example/simple failed for p@ss at http://u:v@other/"
    assert settings.redact(told) == "GET https://***@main.example/simple failed for *** at http://***@other/"
    assert redact("no address: a@b.example") == "no address: a@b.example"


def test_what_a_container_must_see_is_listed(tmp_path: Path, local: LocalIndex) -> None:
    nested, constraints, links = tmp_path / "nested.txt", tmp_path / "constraints.txt", tmp_path / "links"
    links.mkdir()
    nested.write_text("a<2\n")
    constraints.write_text("-c nested.txt\n-c https://x.example/c.txt\nb<3\n")
    settings = PipSettings(
        index_url="https://x.example/simple",
        extra_index_urls=(local.url,),
        find_links=(str(links), "https://x.example/links"),
        constraints=(str(constraints), "https://x.example/c.txt"),
    )
    assert set(settings.mounts()) == {nested, constraints, links, local.root}


def test_pip_reads_the_configuration_that_was_written_as_it_was_meant(tmp_path: Path) -> None:
    settings = parse_pip_settings(LISTING, ca=None, environment={})
    (tmp_path / "pip.conf").write_text(settings.configuration())
    environment = {
        "PATH": os.environ["PATH"],
        "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
        "HOME": str(tmp_path),
    }
    again = read_pip_settings(environment=environment)
    assert (again.index_url, again.find_links, again.extra_index_urls) == (
        settings.index_url,
        settings.find_links,
        settings.extra_index_urls,
    )


def test_a_pip_configuration_that_pip_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("no section\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
        "HOME": str(tmp_path),
    }
    with pytest.raises(PipConfigurationError, match="pip configuration cannot be read") as caught:
        read_pip_settings(environment=environment)
    assert caught.value.exit_code == 5
