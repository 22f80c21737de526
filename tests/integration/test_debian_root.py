"""Needs root, apt with Debian sources, mmdebstrap and the mirror; one test needs a Docker Engine."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from repro_image.adapters.debian import ResolvedDebs, deb_urls, make_root, resolve_debs
from repro_image.core.lockfile import LockedDeb
from repro_image.core.project import DebianBase, Settings
from repro_image.errors import CommandFailedError, UnresolvableDebianError
from tests.somebody import Somebody

BASE = DebianBase(
    suite="bookworm", packages={"python3": "runs vLLM", "libgomp1": "OpenMP", "libnuma1": "thread placement"}
)

# Makes the root once more in a process of its own: folder with resolved.json and the .debs, workspace.
AGAIN = """
import sys
from pathlib import Path
import msgspec
from repro_image.adapters.debian import ResolvedDebs, make_root
debs, workspace = map(Path, sys.argv[1:])
resolved = msgspec.json.decode((debs / "resolved.json").read_bytes(), type=ResolvedDebs)
files = {deb: debs / Path(deb.path).name for deb in reversed(resolved.packages)}
report = lambda line: print(line, flush=True)
make_root(files, source_date_epoch=resolved.source_date_epoch, workspace=workspace, report=report)
"""


def make_root_as(somebody: Somebody, *, ids: str) -> "subprocess.CompletedProcess[str]":
    """ids: text of /etc/subuid and /etc/subgid."""
    folder = somebody.folder
    return subprocess.run(
        [*somebody.prefix(ids=ids), sys.executable, "-c", AGAIN, f"{folder}/debs", f"{folder}/workspace"],
        env={**os.environ, **somebody.environment},
        capture_output=True,
        text=True,
        check=False,
        umask=0o077,
        timeout=300,
    )


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> ResolvedDebs:
    return resolve_debs(BASE, settings=Settings(), workspace=tmp_path_factory.mktemp("resolve"))


@pytest.fixture(scope="module")
def debs(resolved: ResolvedDebs, tmp_path_factory: pytest.TempPathFactory) -> Mapping[LockedDeb, Path]:
    folder = tmp_path_factory.mktemp("debs")
    (folder / "resolved.json").write_bytes(msgspec.json.encode(resolved))
    files = {deb: folder / Path(deb.path).name for deb in resolved.packages}
    for deb, path in files.items():
        with urllib.request.urlopen(deb_urls(deb, Settings())[0], timeout=60) as answer:
            path.write_bytes(answer.read())
    return files


@pytest.fixture(scope="module")
def root(
    resolved: ResolvedDebs, debs: Mapping[LockedDeb, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    workspace = tmp_path_factory.mktemp("root")
    tar = make_root(debs, source_date_epoch=resolved.source_date_epoch, workspace=workspace)
    assert list(workspace.iterdir()) == [tar]
    return tar


@pytest.fixture(scope="module")
def tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    subprocess.run(["tar", "-xpf", root, "-C", folder], check=True)
    return folder


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def again(debs: Mapping[LockedDeb, Path], workspace: Path) -> list[str]:
    return [sys.executable, "-c", AGAIN, str(next(iter(debs.values())).parent), str(workspace)]


def test_the_mirror_serves_exactly_the_locked_bytes(debs: Mapping[LockedDeb, Path]) -> None:
    for deb, path in debs.items():
        assert (f"sha256:{sha256(path)}", path.stat().st_size) == (deb.sha256, deb.size_bytes)


def test_what_is_asked_for_comes_with_dependencies_but_without_apt_and_perl(resolved: ResolvedDebs) -> None:
    names = [deb.name for deb in resolved.packages]
    assert names == sorted(set(names))
    assert {"libc6", "dpkg", "bash", "python3", "libpython3.11-stdlib", "libgomp1", "libnuma1"} <= set(names)
    assert not {"apt", "perl", "usrmerge", "adduser"} & set(names)
    assert {deb.archive for deb in resolved.packages} <= {"bookworm", "bookworm-updates", "bookworm-security"}
    assert 1_767_225_600 < resolved.source_date_epoch <= time.time()


def test_resolving_leaves_the_state_of_the_machine_alone(tmp_path: Path) -> None:
    def state() -> list[tuple[str, int]]:
        folders = (Path("/var/lib/apt"), Path("/var/cache/apt"), Path("/etc/apt"), Path("/var/lib/dpkg"))
        return sorted(
            (str(path), path.lstat().st_mtime_ns) for folder in folders for path in folder.rglob("*")
        )

    before = state()
    resolve_debs(BASE, settings=Settings(), workspace=tmp_path)
    assert state() == before


def test_a_package_that_the_suite_lacks_is_named(tmp_path: Path) -> None:
    base = DebianBase(suite="bookworm", packages={"no-such-package": "for this test"})
    with pytest.raises(UnresolvableDebianError, match="Unable to locate package no-such-package"):
        resolve_debs(base, settings=Settings(), workspace=tmp_path)


def test_a_mirror_that_does_not_answer_is_told_with_the_command(tmp_path: Path) -> None:
    settings = Settings(debian_mirror="http://127.0.0.1:9")
    with pytest.raises(CommandFailedError, match=r"127\.0\.0\.1") as caught:
        resolve_debs(BASE, settings=settings, workspace=tmp_path)
    assert caught.value.command.startswith("apt-get")


def test_another_machine_makes_the_same_bytes(
    root: Path, debs: Mapping[LockedDeb, Path], elsewhere: Mapping[str, str], tmp_path: Path
) -> None:
    """Another folder, umask, time zone, language, host name and resolver; the packages in another order."""
    (tmp_path / "an other").mkdir()
    (tmp_path / "foreign").write_text("elsewhere\n")
    foreign = (
        "hostname elsewhere; umask 077; "
        'for file in /etc/hostname /etc/resolv.conf; do mount --bind "$0" "$file" || exit 1; done; exec "$@"'
    )
    subprocess.run(
        [
            "unshare",
            "--uts",
            "--mount",
            "sh",
            "-c",
            foreign,
            tmp_path / "foreign",
            *again(debs, tmp_path / "an other"),
        ],
        env={
            **os.environ,
            **elsewhere,
            "USER": "other",
        },
        cwd="/",
        check=True,
        capture_output=True,
    )
    assert sha256(tmp_path / "an other/root.tar") == sha256(root)


@pytest.fixture
def downloader(somebody: Somebody, debs: Mapping[LockedDeb, Path]) -> Somebody:
    """Who has the packages, and an empty workspace."""
    shutil.copytree(next(iter(debs.values())).parent, somebody.folder / "debs")
    (somebody.folder / "workspace").mkdir(mode=0o700)
    somebody.takes(somebody.folder)
    return somebody


def test_who_is_not_root_makes_the_same_bytes_and_leaves_nothing(root: Path, downloader: Somebody) -> None:
    done = make_root_as(downloader, ids=Somebody.IDS)
    assert done.returncode == 0, done.stderr
    workspace = downloader.folder / "workspace"
    assert [path.name for path in workspace.iterdir()] == ["root.tar"]
    assert sha256(workspace / "root.tar") == sha256(root)


def test_who_may_not_make_a_user_namespace_is_told_what_is_missing(downloader: Somebody) -> None:
    done = make_root_as(downloader, ids="")
    assert "NoUserNamespaceError: somebody is not root and cannot make a user namespace" in done.stderr
    assert "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 somebody" in done.stderr
    assert list((downloader.folder / "workspace").iterdir()) == []


def test_the_dpkg_database_lists_exactly_the_locked_packages(tree: Path, resolved: ResolvedDebs) -> None:
    form = "${Package} ${Version} ${Architecture} ${db:Status-Abbrev}\n"
    listed = subprocess.run(
        ["dpkg-query", f"--admindir={tree}/var/lib/dpkg", "--show", "--showformat", form],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert sorted(line.rstrip() for line in listed.splitlines()) == sorted(
        f"{deb.name} {deb.version} {deb.architecture} ii" for deb in resolved.packages
    )


def test_the_root_names_neither_machine_nor_mirror_nor_clock(
    root: Path, tree: Path, resolved: ResolvedDebs
) -> None:
    hosts = {deb_urls(deb, Settings())[0].split("/")[2] for deb in resolved.packages}
    secrets = [text.encode() for text in (*hosts, str(root.parent))]
    files = [path for path in (*(tree / "etc").rglob("*"), *(tree / "var").rglob("*")) if path.is_file()]
    files = [path for path in files if not path.is_symlink() and path.parent.name != "info"]
    assert [path for path in files if any(secret in path.read_bytes() for secret in secrets)] == []
    with tarfile.open(root) as archive:
        members = {member.name: member for member in archive.getmembers()}
    unwanted = ("./etc/hostname", "./etc/resolv.conf", "./etc/machine-id", "./etc/apt/sources.list", "./dev")
    assert not members.keys() & set(unwanted)
    assert not [name for name in members if name.startswith("./var/log/") and members[name].isfile()]
    assert max(member.mtime for member in members.values()) <= resolved.source_date_epoch
    assert {(member.uname, member.gname) for member in members.values()} == {("", "")}
    assert next(iter(members)) == "."


def test_licences_stay_and_manuals_go(tree: Path) -> None:
    assert (tree / "usr/share/doc/python3.11/copyright").resolve().is_file()
    assert (tree / "usr/share/doc/libgcc-s1/copyright").resolve().is_file()
    assert (tree / "usr/share/common-licenses/GPL-3").exists()
    assert not list((tree / "usr/share/man").glob("*"))
    assert not list((tree / "usr/share/doc").glob("*/changelog*"))


def test_every_package_still_has_its_licence(tree: Path, resolved: ResolvedDebs) -> None:
    folders = (tree / "usr/share/doc" / deb.name for deb in resolved.packages)
    assert [folder.name for folder in folders if not (folder / "copyright").exists()] == []


def test_the_python_of_the_root_is_whole(tree: Path) -> None:
    modules = (
        "bz2, ctypes, curses, lzma, multiprocessing.synchronize, readline, sqlite3, ssl, uuid, venv, zlib"
    )
    libraries = 'ctypes.CDLL("libgomp.so.1"), ctypes.CDLL("libnuma.so.1")'
    subprocess.run(
        ["chroot", tree, "/usr/bin/python3", "-B", "-c", f"import {modules}; {libraries}"],
        check=True,
        env={"PATH": "/usr/sbin:/usr/bin"},
    )


def test_a_file_that_is_not_the_locked_one_is_refused(
    resolved: ResolvedDebs, debs: Mapping[LockedDeb, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.deb"
    deb = next(deb for deb in debs if deb.name == "libnuma1")
    other.write_bytes(debs[deb].read_bytes() + b"\n")
    with pytest.raises(CommandFailedError, match="libnuma1"):
        make_root({**debs, deb: other}, source_date_epoch=resolved.source_date_epoch, workspace=tmp_path)


def test_a_missing_dependency_is_told_with_the_last_lines(
    resolved: ResolvedDebs, debs: Mapping[LockedDeb, Path], tmp_path: Path
) -> None:
    fewer = {deb: path for deb, path in debs.items() if deb.name != "libsqlite3-0"}
    with pytest.raises(CommandFailedError, match="libsqlite3-0"):
        make_root(fewer, source_date_epoch=resolved.source_date_epoch, workspace=tmp_path)


def test_a_killed_run_leaves_no_process_and_no_mount(debs: Mapping[LockedDeb, Path], tmp_path: Path) -> None:
    with subprocess.Popen(again(debs, tmp_path), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "installing essential packages" in line:
                break
        assert processes_below(tmp_path)
        process.send_signal(signal.SIGKILL)
    assert processes_left_below(tmp_path) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    shutil.rmtree(tmp_path)


def test_an_interrupted_run_leaves_no_process_and_no_mount(
    resolved: ResolvedDebs, debs: Mapping[LockedDeb, Path], tmp_path: Path
) -> None:
    def interrupt(line: str) -> None:
        if "installing essential packages" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_root(debs, source_date_epoch=resolved.source_date_epoch, workspace=tmp_path, report=interrupt)
    assert processes_left_below(tmp_path) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def processes_left_below(folder: Path) -> list[str]:
    """Return what is still there after 10 s: the kernel ends a process namespace in its own time."""
    deadline = time.monotonic() + 10
    while (left := processes_below(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def processes_below(folder: Path) -> list[str]:
    """Return the command lines that name ``folder`` and the roots below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, root = (
                (process / "cmdline").read_bytes().decode(errors="replace"),
                (process / "root").readlink(),
            )
        except OSError:
            continue
        if str(folder) in command or root.is_relative_to(folder):
            found.append(command)
    return found


@pytest.mark.docker
def test_the_sha256_of_the_tar_is_the_diff_id_after_docker_import(root: Path) -> None:
    name = f"repro-image-test-root:{os.getpid()}"
    subprocess.run(["docker", "import", root, name], check=True, capture_output=True)
    try:
        layers = ["docker", "inspect", "--format", "{{json .RootFS.Layers}}", name]
        printed = subprocess.run(layers, check=True, capture_output=True, text=True).stdout
        assert json.loads(printed) == [f"sha256:{sha256(root)}"]
        modules = "import ctypes, multiprocessing.synchronize, sqlite3, ssl"
        run = ["docker", "run", "--rm", "--network", "none", "--read-only", name, "python3", "-c", modules]
        subprocess.run(run, check=True, capture_output=True)
    finally:
        subprocess.run(["docker", "rmi", "--force", name], check=True, capture_output=True)
