"""pip-compile and uv: requirements -> names and versions, resolved inside the image's own root.

The interpreter, the platform tags and the markers are then the image's. The tools come from beside
repro-image and are mounted read-only; only wheels are looked at, so nothing of a package runs.
"""

import importlib.metadata
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import msgspec
from packaging.specifiers import SpecifierSet

from repro_image.adapters.engine import Mount, ToolResult
from repro_image.adapters.package_index import links_page, local_wheels
from repro_image.adapters.pip_settings import PipSettings, local_path
from repro_image.core.wishes import parse_pins
from repro_image.errors import ResolveError, ResolverMissingError

# Pure Python, so that the root needs nothing but an interpreter.
_PIP_TOOLS = ("pip", "piptools", "click", "build", "pyproject_hooks", "packaging")
_TOOLS, _WORK = "/repro/tools", "/repro/scratch"
_TEMPORARY = f"{_WORK}/temporary"
_INTERPRETER = """
import json, platform, packaging.tags
tags = [str(tag) for tag in packaging.tags.sys_tags()]
print(json.dumps({"version": platform.python_version(), "tags": tags}))
"""
_TIMEOUT_S = 1800
_SHOWN_LINES = 20


class ToolRunner(Protocol):
    """What a resolver needs of adapters.engine.Engine."""

    def run_tool(
        self,
        image: str,
        command: Sequence[str],
        *,
        mounts: Sequence[Mount] = (),
        environment: Mapping[str, str] | None = None,
        network: Literal["none", "host"] = "none",
        timeout_s: float = 600,
        workdir: str = _WORK,
    ) -> ToolResult: ...


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """The root's Python. version: such as ``3.11.2``; tags: wheel tags that it accepts, best first."""

    version: str
    tags: tuple[str, ...]


class ResolveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to resolve.

    path:             of the .in file, for messages.
    requirements:     lines that parse_wishes has accepted.
    excluded:         names that are left out of the answer.
    pins:             versions to keep where they still fit.
    upgrade_packages: names whose pins are not kept.
    links:            HTML page of further wheels, see package_index.links_page.
    """

    path: str
    requirements: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    pins: Mapping[str, str] = msgspec.field(default_factory=dict)
    upgrade_packages: tuple[str, ...] = ()
    links: str | None = None


def read_interpreter(engine: ToolRunner, image: str) -> Interpreter:
    """Return what the root's ``python3`` is. Raises: ResolveError when it does not run."""
    result = engine.run_tool(
        image,
        ["python3", "-c", _INTERPRETER],
        mounts=_tool_mounts(("packaging",)),
        environment={"PYTHONPATH": _TOOLS, "PYTHONDONTWRITEBYTECODE": "1"},
        workdir="/",
    )
    if result.exit_code != 0:
        raise _failure("python3", result, path="the base's python3", settings=PipSettings())
    return msgspec.convert(json.loads(result.stdout), Interpreter)


class Resolver(ABC):
    """One resolver behind the interface that both share.

    settings: this machine's pip configuration, which the resolver inside sees the same.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    needed: ClassVar[SpecifierSet]

    def __init__(self, engine: ToolRunner, settings: PipSettings) -> None:
        self._engine, self._settings = engine, settings

    @property
    def identity(self) -> str:
        """Name and version, for the lock's header. Raises: ResolverMissingError."""
        try:
            found = importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError as error:
            raise ResolverMissingError(self.package, found=None, needed=str(self.needed)) from error
        if found not in self.needed:
            raise ResolverMissingError(self.package, found=found, needed=str(self.needed))
        return f"{self.name} {found}"

    def resolve(self, image: str, request: ResolveRequest, *, workspace: Path) -> dict[str, str]:
        """Return canonical name -> version of everything that the requirements need, without ``excluded``.

        image:     name of the root's image.
        workspace: empty folder of the caller's.
        Raises: ResolveError with the resolver's last lines; ResolverOutputError; ResolverMissingError.
        """
        identity = self.identity
        output = workspace / "requirements.txt"
        self._write(workspace, request)
        if request.pins:
            output.write_text(
                "".join(f"{name}=={version}\n" for name, version in sorted(request.pins.items()))
            )
        mounts = [Mount(source=path, target=str(path)) for path in self._settings.mounts()]
        mounts += [Mount(source=workspace, target=_WORK, read_only=False), *self._mounts()]
        result = self._engine.run_tool(
            image,
            self._command(request),
            mounts=mounts,
            environment={**self._settings.proxies, **_trust(self._settings), **self._environment()},
            network="host",
            timeout_s=_TIMEOUT_S,
            workdir=_WORK,
        )
        if result.exit_code != 0 or not output.is_file():
            raise _failure(identity, result, path=request.path, settings=self._settings)
        pins = parse_pins(output.read_text(encoding="utf-8"), resolver=identity, path=request.path)
        return {name: version for name, version in pins.items() if name not in request.excluded}

    def _write(self, workspace: Path, request: ResolveRequest) -> None:
        (workspace / "temporary").mkdir()
        (workspace / "requirements.in").write_text("".join(f"{line}\n" for line in request.requirements))
        if request.links is not None:
            (workspace / "links.html").write_text(request.links)

    @abstractmethod
    def _mounts(self) -> tuple[Mount, ...]: ...

    @abstractmethod
    def _command(self, request: ResolveRequest) -> list[str]: ...

    @abstractmethod
    def _environment(self) -> dict[str, str]: ...


class PipTools(Resolver):
    """``pip-compile``, the default."""

    name = "pip-tools"
    package = "pip-tools"
    needed = SpecifierSet(">=7.5,<8")

    def _write(self, workspace: Path, request: ResolveRequest) -> None:
        super()._write(workspace, request)
        settings = self._settings
        if request.links is not None:
            settings = msgspec.structs.replace(
                settings, find_links=(*settings.find_links, f"{_WORK}/links.html")
            )
        _write_secret(workspace / "pip.conf", settings.configuration())

    def _mounts(self) -> tuple[Mount, ...]:
        return _tool_mounts(_PIP_TOOLS)

    def _command(self, request: ResolveRequest) -> list[str]:
        command = [
            "python3",
            "-m",
            "piptools",
            "compile",
            "--quiet",
            "--no-config",
            "--resolver=backtracking",
        ]
        # Addresses and paths have no place in a lock.
        command += [
            "--no-emit-index-url",
            "--no-emit-find-links",
            "--no-emit-trusted-host",
            "--no-emit-options",
        ]
        command += ["--strip-extras", "--no-annotate", "--no-header", "--newline=lf"]
        # Naming a package "unsafe" leaves it out, and replaces the default list, which has setuptools in it.
        command += [f"--unsafe-package={name}" for name in request.excluded] or ["--allow-unsafe"]
        command += [f"--constraint={local_path(name) or name}" for name in self._settings.constraints]
        command += [f"--upgrade-package={name}" for name in request.upgrade_packages]
        return [*command, f"--cache-dir={_WORK}/cache", "--output-file=requirements.txt", "requirements.in"]

    def _environment(self) -> dict[str, str]:
        return {
            "HOME": _WORK,
            "LC_ALL": "C.UTF-8",
            "PIP_CONFIG_FILE": f"{_WORK}/pip.conf",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            "PIP_ONLY_BINARY": ":all:",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": _TOOLS,
            "TMPDIR": _TEMPORARY,
        }


class Uv(Resolver):
    """``uv pip compile``: fast, and asks one index only for each package.

    pip looks for the best version in all indexes at once; uv takes the first index that knows the project,
    extra ones before the main one, and never mixes them. Only an index that is a folder of this machine
    counts as find-links, which add to any index. The two may choose different versions: the lock names its
    resolver.
    """

    name = "uv"
    package = "uv"
    needed = SpecifierSet(">=0.9")

    def _write(self, workspace: Path, request: ResolveRequest) -> None:
        wheels = links_page(local_wheels(self._settings)) + (request.links or "")
        super()._write(workspace, msgspec.structs.replace(request, links=wheels))
        (workspace / "excluded.txt").write_text("".join(f"{name}\n" for name in request.excluded))
        _write_secret(workspace / "uv.toml", self._configuration())

    def _configuration(self) -> str:
        """Return a uv.toml that says what pip.conf says; a file keeps credentials out of arguments."""
        settings = self._settings
        links = [str(local_path(link) or link) for link in settings.find_links]
        links.append(f"file://{_WORK}/links.html")
        # json.dumps writes strings as TOML reads them.
        lines = [
            f"find-links = {json.dumps(links)}",
            f"allow-insecure-host = {json.dumps(settings.trusted_hosts)}",
        ]
        lines += ['index-strategy = "first-index"', f"no-index = {json.dumps(not settings.indexes)}"]
        for url in settings.extra_index_urls:
            lines += ["[[index]]", f"url = {json.dumps(url)}"] if local_path(url) is None else []
        if settings.index_url is not None:
            lines += ["[[index]]", f"url = {json.dumps(settings.index_url)}", "default = true"]
        return "".join(f"{line}\n" for line in lines)

    def _mounts(self) -> tuple[Mount, ...]:
        import uv

        return (Mount(source=Path(uv.find_uv_bin()).resolve(), target=f"{_TOOLS}/uv"),)

    def _command(self, request: ResolveRequest) -> list[str]:
        command = [f"{_TOOLS}/uv", "pip", "compile", "--quiet", f"--config-file={_WORK}/uv.toml"]
        command += [
            "--only-binary=:all:",
            "--no-header",
            "--no-annotate",
            "--no-python-downloads",
            "--python=python3",
        ]
        command += ["--excludes=excluded.txt"] if request.excluded else []
        command += [f"--constraints={local_path(name) or name}" for name in self._settings.constraints]
        command += [f"--upgrade-package={name}" for name in request.upgrade_packages]
        return [*command, f"--cache-dir={_WORK}/cache", "--output-file=requirements.txt", "requirements.in"]

    def _environment(self) -> dict[str, str]:
        environment = {
            "HOME": _WORK,
            "TMPDIR": _TEMPORARY,
            "UV_HTTP_TIMEOUT": f"{self._settings.timeout_s:.0f}",
        }
        if self._settings.client_cert:
            environment["SSL_CLIENT_CERT"] = self._settings.client_cert
        return environment


RESOLVERS: Mapping[str, type[Resolver]] = {"pip-tools": PipTools, "uv": Uv}


def _tool_mounts(packages: Sequence[str]) -> tuple[Mount, ...]:
    """Return mounts of packages of repro-image's own environment, without anything else of it."""
    mounts = []
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ResolverMissingError("pip-tools", found=None, needed=str(PipTools.needed))
        folder = Path(spec.submodule_search_locations[0]).resolve()
        mounts.append(Mount(source=folder, target=f"{_TOOLS}/{package}"))
    return tuple(mounts)


def _write_secret(path: Path, text: str) -> None:
    """Write a file that may hold credentials: nobody else may read it."""
    path.touch(mode=0o600)
    path.write_text(text)


def _trust(settings: PipSettings) -> dict[str, str]:
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    return dict.fromkeys(names, settings.ca) if settings.ca else {}


def _failure(resolver: str, result: ToolResult, *, path: str, settings: PipSettings) -> ResolveError:
    lines = (result.stderr.strip() or result.stdout.strip()).splitlines()[-_SHOWN_LINES:]
    output = settings.redact("\n".join(lines)) or "it wrote no output"
    return ResolveError(resolver, status=result.exit_code, output=output, requirements=path)
