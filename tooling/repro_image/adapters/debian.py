"""Debian: which .debs make a root file system, where they come from, and the root's tar.

Resolving uses the machine's apt-get with a state of its own; making uses mmdebstrap. Neither touches the
machine's own apt or dpkg.
"""

import contextlib
import email.utils
import functools
import getpass
import os
import re
import shlex
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import msgspec

from repro_image.core.lockfile import Distribution, LockedDeb
from repro_image.core.project import DebianBase, Settings
from repro_image.errors import (
    CommandFailedError,
    CorruptFileError,
    MissingProgramError,
    NoDebianSourceError,
    NoUserNamespaceError,
    UnresolvableDebianError,
)

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_COMPONENTS: Mapping[Distribution, str] = {"debian": "main", "ubuntu": "main universe"}
# For machines whose apt does not know Ubuntu; each file from there is checked by signature or hash.
_UBUNTU = "http://archive.ubuntu.com"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TAIL_LINES = 20
_STOP_TIMEOUT_S = 30
# init-system-helpers asks for `usrmerge | usr-is-merged`. The first brings 50 MB of Perl to convert an old
# root; a new root is born with merged /usr, so the second, an empty package, is enough.
_MERGED_USR = "usr-is-merged"

_CAPABILITY = "SCHILY.xattr.security.capability"
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# Who is not root is root in a namespace of its own, and the owner of what that root writes.
_USER_NAMESPACE = ("--user", "--map-root-user", "--map-auto")

_APT_SETTINGS = """\
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::State::lists "{folder}/lists";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}/log";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "root";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::ForceHash "SHA256";
Acquire::GzipIndexes "false";
Acquire::Languages {{ "none"; }};
Acquire::Retries "3";
pkgCacheGen::ForceEssential ",";
"""

# The new root is born with merged /usr, as usr-is-merged demands.
_SETUP_HOOK = """\
#!/bin/sh
set -eu
cd "$1"
for folder in bin sbin lib lib64; do
  mkdir -p "usr/$folder"
  ln -s "usr/$folder" "$folder"
done
"""
# What names the machine, its clock or its mirror; what apt and dpkg leave behind; manuals. Licences stay.
_CUSTOMIZE_HOOK = """\
#!/bin/sh
set -eu
cd "$1"
rm -f etc/hostname etc/resolv.conf etc/machine-id var/lib/dbus/machine-id etc/.pwd.lock
rm -f etc/passwd- etc/group- etc/shadow- etc/gshadow- etc/subuid- etc/subgid-
rm -f etc/apt/sources.list etc/apt/apt.conf.d/*mmdebstrap etc/apt/apt.conf.d/99debconf
rm -f var/cache/ldconfig/aux-cache var/cache/debconf/*-old
rm -f var/lib/dpkg/*-old var/lib/dpkg/lock var/lib/dpkg/lock-frontend
rm -rf var/backups/* usr/share/man/* usr/share/info/* usr/share/locale/* usr/share/lintian
find var/log var/lib/apt var/cache/apt -type f -delete
cd usr/share/doc
find . -mindepth 2 ! -type d ! -iname 'copyright*' ! -iname 'licen[cs]e*' ! -iname 'notice*' -delete
find . -mindepth 1 -type d -empty -delete
"""


class InstalledSystem(msgspec.Struct, frozen=True, kw_only=True):
    """A system that packages are to be installed on.

    suite:   code name of its release.
    status:  text of its /var/lib/dpkg/status.
    keyring: the keys that its archives are signed with.
    libc6:   version of its C library's package.
    """

    distribution: Distribution
    suite: str
    status: str
    keyring: bytes
    libc6: str


class ResolvedDebs(msgspec.Struct, frozen=True, kw_only=True):
    """Which packages make the root.

    packages:          sorted by name.
    source_date_epoch: seconds; the newest ``Date`` of the Release files that were used.
    """

    packages: tuple[LockedDeb, ...]
    source_date_epoch: int


def archives(suite: str) -> tuple[str, str, str]:
    """Return the archives that make up ``suite``: release, updates, security."""
    return suite, f"{suite}-updates", f"{suite}-security"


def resolve_debs(base: DebianBase, *, settings: Settings, workspace: Path) -> ResolvedDebs:
    """Return the packages of the root: the suite's Essential ones, ``base.packages``, and their dependencies.

    Nothing that is merely recommended comes along, and apt itself only where something depends on it. The
    indexes come from the machine's mirrors (or ``settings.debian_mirror``) and must be signed by Debian.

    workspace: folder for a private apt state; 60 MB, removed by the caller.
    Raises: MissingProgramError, NoDebianSourceError, CommandFailedError (exit code 5);
        UnresolvableDebianError (3) when the suite lacks a package.
    """
    _require("apt-get", package="apt")
    if not _KEYRING.is_file():
        raise MissingProgramError(str(_KEYRING), package="debian-archive-keyring")
    sites = {archive: _site(archive, settings) for archive in archives(base.suite)}
    folder = Path(tempfile.mkdtemp(prefix="apt-", dir=workspace)).resolve()
    environment = _private_apt(folder, sites, ca=settings.ca, keyring=_KEYRING, components="main")
    packages = tuple(sorted(base.packages))
    merged = (_MERGED_USR,) if _has_package(_MERGED_USR, environment) else ()
    hashes = _choose(("?essential", *packages, *merged), environment, name=f"Debian {base.suite}")
    return _resolved(folder, hashes, environment)


def resolve_debs_on(
    system: InstalledSystem, packages: Iterable[str], *, settings: Settings, workspace: Path
) -> ResolvedDebs:
    """Return what must be installed on ``system`` for ``packages``, from the archives of its own release.

    What it has already stays out, unless a newer version is needed; sources of other people that it lists are
    not asked. Recommended packages do not come along.
    Raises: as resolve_debs.
    """
    _require("apt-get", package="apt")
    names = archives(system.suite)
    sites = {archive: _site(archive, settings, system.distribution) for archive in names}
    folder = Path(tempfile.mkdtemp(prefix="apt-", dir=workspace)).resolve()
    keyring = folder / "keyring.gpg"
    keyring.write_bytes(system.keyring)
    components = _COMPONENTS[system.distribution]
    environment = _private_apt(folder, sites, ca=settings.ca, keyring=keyring, components=components)
    (folder / "status").write_text(system.status, encoding="utf-8")
    name = f"{system.distribution.capitalize()} {system.suite}"
    return _resolved(folder, _choose(tuple(sorted(packages)), environment, name=name), environment)


def _choose(wanted: tuple[str, ...], environment: Mapping[str, str], *, name: str) -> tuple[str, ...]:
    """Return the digests of the packages that apt would install for ``wanted``."""
    command = ["apt-get", "-qq", "--yes", "--print-uris", "install", *wanted]
    try:
        return parse_print_uris("\n".join(_query(command, environment)))
    except CommandFailedError as error:
        named = tuple(package for package in wanted if package not in ("?essential", _MERGED_USR))
        raise UnresolvableDebianError(named, suite=name, lines=error.lines) from error


def _resolved(folder: Path, hashes: Iterable[str], environment: Mapping[str, str]) -> ResolvedDebs:
    packages: dict[str, LockedDeb] = {}
    for line in _query(["apt-get", "indextargets", "--format", "$(RELEASE) $(FILENAME)"], environment):
        archive, index = line.split(" ", 1)
        found = parse_packages(Path(index).read_text(encoding="utf-8"), hashes, archive=archive)
        packages = {**found, **packages}
    dates = [
        parse_release_date(path.read_text(encoding="utf-8")) for path in (folder / "lists").glob("*Release")
    ]
    return ResolvedDebs(
        packages=tuple(sorted((packages[digest] for digest in hashes), key=lambda deb: deb.name)),
        source_date_epoch=max(dates),
    )


def deb_urls(deb: LockedDeb, settings: Settings, distribution: Distribution = "debian") -> tuple[str, ...]:
    """Return where to ask for ``deb``, best first: the mirror, then ``settings.debian_snapshot`` where set.

    A mirror drops a package soon after a newer one came; a snapshot keeps it. ``debian_mirror`` and
    ``debian_snapshot`` are the address above ``debian/`` and ``debian-security/``; where those names stand
    elsewhere in it, ``{archive}`` marks the place: ``https://…/archive/{archive}/20260101T000000Z``.
    Raises: NoDebianSourceError when neither is known.
    """
    snapshot = settings.debian_snapshot if distribution == "debian" else None
    urls = [_address(snapshot, deb.archive)] if snapshot else []
    try:
        urls.insert(0, _mirror(_site(deb.archive, settings, distribution)))
    except NoDebianSourceError:
        if not urls:
            raise
    return tuple(f"{url}/{quote(deb.path, safe='/%~')}" for url in urls)


def make_root(
    debs: Mapping[LockedDeb, Path],
    *,
    source_date_epoch: int,
    workspace: Path,
    report: Callable[[str], None] = lambda _line: None,
) -> Path:
    """Return root.tar in ``workspace``: exactly ``debs``, installed; the same bytes on every machine.

    The tar's sha256 is the diff ID of the layer that it is in the engine. It names neither the
    machine nor the mirror, and holds no device nodes, manuals or translations; licences stay. mmdebstrap runs
    without the caller's environment, ends when its parent does, and leaves no mount behind.

    debs:      locked package -> its file, already checked against the lock.
    workspace: folder that holds the tree while it is made; 500 MB, removed by the caller.
    report:    called with each line of mmdebstrap's progress.
    Raises: MissingProgramError, NoUserNamespaceError, CommandFailedError with the last lines,
        CorruptFileError.
    """
    _require("mmdebstrap", package="mmdebstrap")
    namespaces = _namespaces()
    folder = Path(tempfile.mkdtemp(prefix="root-", dir=workspace)).resolve()
    repository, temporary, root = folder / "repository", folder / "tmp", workspace / "root.tar"
    _write_repository(repository, debs)
    setup = _write_script(folder / "setup", _SETUP_HOOK)
    customize = _write_script(folder / "customize", _CUSTOMIZE_HOOK)
    temporary.mkdir()
    temporary.chmod(0o1777)
    environment = {
        "PATH": _PATH,
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(source_date_epoch),
        "TMPDIR": str(temporary),
    }
    partial = folder / "root.tar"
    packages = ",".join(sorted(f"{deb.name}={deb.version}" for deb in debs))
    options = [f"--include={packages}", f"--setup-hook={setup}", f"--customize-hook={customize}"]
    try:
        _run([*namespaces, *_mmdebstrap(options, repository, partial)], environment, report)
        _write_again(partial, root)
    finally:
        _remove(folder, namespaces)
    return root


def _namespaces() -> tuple[str, ...]:
    """Return the command that makes mount and process namespaces, which end with their first process, and for
    who is not root a user namespace; nothing for a root that may not make them.

    Raises: NoUserNamespaceError.
    """
    if os.geteuid() == 0:
        return _NAMESPACES if _told([*_NAMESPACES, "true"]) is None else ()
    namespaces = (*_NAMESPACES, *_USER_NAMESPACE)
    reason = _told([*namespaces, "true"])
    if reason is not None:
        raise NoUserNamespaceError(getpass.getuser(), reason=reason)
    return namespaces


def _remove(folder: Path, namespaces: tuple[str, ...]) -> None:
    """Remove what was made in ``namespaces``, where some of it belongs to users that exist only there."""
    if namespaces and os.geteuid() != 0:
        _told([*namespaces, "rm", "-rf", str(folder)])
    shutil.rmtree(folder, ignore_errors=True)


def _mmdebstrap(options: list[str], repository: Path, root: Path) -> list[str]:
    return [
        "mmdebstrap",
        "--variant=essential",
        "--mode=root",
        "--format=tar",
        "--architectures=amd64",
        '--aptopt=APT::Sandbox::User "root"',
        *options,
        # The hook has cleaned up what these would, and they expect files that it removed.
        "--skip=cleanup/apt,cleanup/mmdebstrap,output/dev",
        "",  # no suite: every Essential package of the repository
        str(root),
        f"deb [trusted=yes] copy:{quote(str(repository))} ./",
    ]


def _write_again(source: Path, target: Path) -> None:
    """Write the entries of one tar into another, in their order, in one form.

    GNU tar 1.34 and 1.35 write different headers for the same tree, one mmdebstrap writes ./dev and another
    leaves it out, and some file systems add attributes of their own; file capabilities stay.
    """
    with tarfile.open(source) as old, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as new:
        for member in old:
            if member.name == "./dev" or member.name.startswith("./dev/"):
                continue
            headers = {key: value for key, value in member.pax_headers.items() if key == _CAPABILITY}
            entry = tarfile.TarInfo(member.name)
            entry.type, entry.linkname, entry.mode = member.type, member.linkname, member.mode
            entry.uid, entry.gid, entry.mtime = member.uid, member.gid, int(member.mtime)
            entry.size, entry.pax_headers = (member.size if member.isreg() else 0), headers
            new.addfile(entry, old.extractfile(member) if member.isreg() else None)


def _write_script(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def _write_repository(folder: Path, debs: Mapping[LockedDeb, Path]) -> None:
    """Write a flat apt repository of exactly ``debs``; apt checks the locked hashes while it reads them."""
    folder.mkdir()
    folder.chmod(0o755)
    stanzas = []
    for deb, path in sorted(debs.items(), key=lambda item: item[0].name):
        name = Path(deb.path).name
        (folder / name).symlink_to(path.resolve())
        try:
            control = _query(["dpkg-deb", "--field", str(path)], {"PATH": _PATH, "LC_ALL": "C.UTF-8"})
        except CommandFailedError as error:
            raise CorruptFileError(str(path), expected=f"the package {deb.name}", found=error.what) from error
        stanzas.append(
            "\n".join(control)
            + f"\nFilename: ./{name}\nSize: {deb.size_bytes}\nSHA256: {deb.sha256.removeprefix('sha256:')}\n"
        )
    (folder / "Packages").write_text("\n".join(stanzas), encoding="utf-8")
    (folder / "Packages").chmod(0o644)


def parse_index_targets(text: str) -> dict[str, str]:
    """Return archive -> site, from ``apt-get indextargets`` lines of kind, code name, component and site.

    Only main counts; of several sites the first is taken, as apt lists them.
    """
    sites: dict[str, str] = {}
    for line in text.splitlines():
        kind, archive, component, site = line.split(" ", 3)
        if kind == "Packages" and component == "main":
            sites.setdefault(archive, site)
    return sites


def parse_print_uris(text: str) -> tuple[str, ...]:
    """Return the sha256 digests that ``apt-get --print-uris`` names, in its order."""
    return tuple(
        f"sha256:{found}"
        for found in re.findall(r"^'[^']+' \S+ \d+ SHA256:([0-9a-f]{64})$", text, re.MULTILINE)
    )


def parse_packages(text: str, digests: Iterable[str], *, archive: str) -> dict[str, LockedDeb]:
    """Return digest -> package, for those ``digests`` that the Packages index ``text`` lists."""
    wanted = set(digests)
    found: dict[str, LockedDeb] = {}
    for stanza in text.split("\n\n"):
        match = re.search(r"^SHA256: ([0-9a-f]{64})$", stanza, re.MULTILINE)
        if match is None or (digest := f"sha256:{match[1]}") not in wanted:
            continue
        fields = dict(re.findall(r"^(\S+): (.+)$", stanza, re.MULTILINE))
        values = {
            "name": fields["Package"],
            "version": fields["Version"],
            "architecture": fields["Architecture"],
            "sha256": digest,
            "size_bytes": int(fields["Size"]),
            "path": fields["Filename"],
            "archive": archive,
        }
        found[digest] = msgspec.convert(values, LockedDeb)
    return found


def parse_release_date(text: str) -> int:
    """Return the ``Date`` of a Release or InRelease file in seconds since 1970, UTC."""
    match = re.search(r"^Date: (.+)$", text, re.MULTILINE)
    if match is None:
        raise ValueError("the Release file has no Date")
    return int(email.utils.parsedate_to_datetime(match[1].replace("UTC", "+0000")).timestamp())


def parse_mirror_list(text: str) -> str | None:
    """Return the first address of a mirror list, apt's ``mirror+file:``, or None where it names none."""
    lines = (line.split() for line in text.splitlines())
    return next((words[0] for words in lines if words and words[0].startswith(("http://", "https://"))), None)


def _site(archive: str, settings: Settings, distribution: Distribution = "debian") -> str:
    mirror = settings.debian_mirror if distribution == "debian" else settings.ubuntu_mirror
    if mirror:
        return _address(mirror, archive, distribution)
    site = _machine_sites().get(archive)
    if site is None and distribution == "ubuntu":
        return _address(_UBUNTU, archive, distribution)
    if site is None:
        raise NoDebianSourceError(archive)
    return site


def _address(address: str, archive: str, distribution: Distribution = "debian") -> str:
    is_apart = distribution == "debian" and archive.endswith("-security")
    name = "debian-security" if is_apart else distribution
    return (
        address.replace("{archive}", name) if "{archive}" in address else f"{address.rstrip('/')}/{name}"
    ).rstrip("/")


def _mirror(site: str) -> str:
    """Return ``site`` as an address: cloud images of Debian name a file with a list of mirrors instead."""
    if not site.startswith("mirror+file:"):
        return site.rstrip("/")
    with contextlib.suppress(OSError):
        first = parse_mirror_list(Path(site.removeprefix("mirror+file:")).read_text(encoding="utf-8"))
        if first:
            return first.rstrip("/")
    raise NoDebianSourceError(site)


@functools.cache
def _machine_sites() -> Mapping[str, str]:
    """Return archive -> site of the machine's own apt sources; empty where there is no apt."""
    if shutil.which("apt-get", path=_PATH) is None:
        return {}
    form = "$(CREATED_BY) $(CODENAME) $(COMPONENT) $(SITE)"
    command = ["apt-get", "indextargets", "--format", form]
    return parse_index_targets("\n".join(_query(command, {**os.environ, "LC_ALL": "C.UTF-8"})))


def _private_apt(
    folder: Path, sites: Mapping[str, str], *, ca: str | None, keyring: Path, components: str
) -> dict[str, str]:
    """Lay out an apt state in ``folder``, with the indexes of ``sites`` and nothing installed; return the
    environment in which apt-get uses it.

    Of the machine's own settings only the way to the network is taken over (proxies, certificates,
    credentials): its pins, architectures and default release would change what is resolved.
    """
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "cache/archives/partial").mkdir(parents=True)
    (folder / "status").touch()
    line = f"deb [arch=amd64 signed-by={keyring}] {{site}} {{archive}} {components}\n"
    sources = "".join(line.format(site=site, archive=archive) for archive, site in sites.items())
    (folder / "sources.list").write_text(sources, encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    own = _query(["apt-config", "dump", "Acquire"], environment)
    network = [setting for setting in own if not setting.startswith("Acquire::IndexTargets")]
    certificates = f'Acquire::https::CAInfo "{Path(ca).resolve()}";\n' if ca else ""
    settings = "\n".join(network) + "\n" + _APT_SETTINGS.format(folder=folder) + certificates
    (folder / "apt.conf").write_text(settings)
    environment["APT_CONFIG"] = str(folder / "apt.conf")
    _run(["apt-get", "-q", "update", "--error-on=any"], environment, report=lambda _line: None)
    return environment


def _has_package(name: str, environment: Mapping[str, str]) -> bool:
    return name in _query(["apt-cache", "pkgnames", name], environment)


def _require(program: str, *, package: str) -> None:
    if shutil.which(program, path=_PATH) is None:
        raise MissingProgramError(program, package=package)


def _told(command: list[str]) -> str | None:
    """Return None where ``command`` succeeds, else the last line that it told."""
    done = subprocess.run(
        command, env={"PATH": _PATH}, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _query(command: list[str], environment: Mapping[str, str]) -> list[str]:
    """Return the lines that a short ``command`` prints on standard output. Raises: CommandFailedError."""
    done = subprocess.run(
        command, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CommandFailedError(
            shlex.join(command),
            exit_code=done.returncode,
            lines=tuple(done.stderr.splitlines()[-_TAIL_LINES:]),
        )
    return done.stdout.splitlines()


def _run(command: list[str], environment: Mapping[str, str], report: Callable[[str], None]) -> None:
    """Run ``command``; each line of either stream goes to ``report``.

    Raises: CommandFailedError with the last lines.
    """
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with _started(command, environment) as process:
        for line in process.stdout or ():
            tail.append(line.rstrip("\n"))
            report(tail[-1])
        exit_code = process.wait()
    if exit_code != 0:
        raise CommandFailedError(shlex.join(command), exit_code=exit_code, lines=tuple(tail))


@contextlib.contextmanager
def _started(command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Yield ``command``, started in a session of its own.

    It dies with this process, and whatever leaves the block early ends all of its process group.
    """
    # Outside a process namespace only a polite signal lets mmdebstrap remove its mounts and files.
    stop = signal.SIGKILL if command[0] == "unshare" else signal.SIGTERM
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", stop.name.removeprefix("SIG"), *command],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        umask=0o022,
        start_new_session=True,
    ) as process:
        try:
            yield process
        except BaseException:
            os.killpg(process.pid, stop)
            try:
                process.communicate(
                    timeout=_STOP_TIMEOUT_S
                )  # the end of its output: its children are gone too
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            raise
