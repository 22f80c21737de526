"""Docker Engine: queries through the docker SDK, containers through the docker CLI.

Containers run through the CLI because it is a process of its own: when this one is killed at any moment, the
CLI sees its standard input close and passes that on, the supervisor inside ends, and ``--rm`` leaves nothing
behind.
"""

import contextlib
import functools
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from packaging.version import InvalidVersion, Version

from repro_image.adapters.cdi import KIND, device_names
from repro_image.adapters.image_import import load_image
from repro_image.adapters.shipped import RUNNER_FOLDER
from repro_image.adapters.store import hash_file
from repro_image.core.reference import sha256_digest
from repro_image.core.reporter import Reporter
from repro_image.core.root_image import root_image
from repro_image.errors import (
    ContainerTimeoutError,
    CorruptFileError,
    EngineCallError,
    EngineMissingError,
    EngineTooOldError,
    ImageStoreError,
    NoGpuAccessError,
    PullError,
    ReproImageError,
)

if TYPE_CHECKING:
    import docker

ENGINE_FLOOR, BUILDX_FLOOR = Version("26"), Version("0.13")
# BuildKit asks the registry of an image that the engine has as well, and waits for one that does not answer.
# Nothing listens on this port of loopback: it is refused at once, BuildKit then looks here, and nobody else
# can give an image this name.
_LOCAL = "127.0.0.1:1/repro-image"
ROOT_REPOSITORY, BASE_REPOSITORY = f"{_LOCAL}/root", f"{_LOCAL}/base"
PACKAGES_REPOSITORY = f"{_LOCAL}/packages"
_PLATFORM = "linux/amd64"

_SUPERVISOR = "/repro/supervise.py"
# The engine's words where it has no way to give GPUs to containers, or does not know these.
_NO_GPUS = ("could not select device driver", "CDI device injection failed", "nvidia-container-cli")
_LINE_LENGTH = 2**16  # a foreign image may write a line without an end
_STOP_S = 6.0  # Ctrl-C has to be over within 10 s


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineVersions:
    """What the engine says of itself; core/ports.py explains most fields. id: made when it was new."""

    id: str
    engine: str
    containerd_store: bool
    buildx: str | None
    data_root: str
    cdi_folders: tuple[str, ...]
    nvidia_runtime: bool
    kernel: str
    architecture: str

    @property
    def folder(self) -> str | None:
        """A folder of that name may be here too where the engine is not: its socket tells."""
        is_here = (os.environ.get("DOCKER_HOST") or "unix://").startswith("unix://")
        return self.data_root if is_here and Path(self.data_root).is_dir() else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInfo:
    """One image of the local store.

    id:       digest that the store knows it by: of the manifest, with the containerd image store.
    diff_ids: digests of the uncompressed layers, bottom first.
    """

    id: str
    diff_ids: tuple[str, ...]
    size_bytes: int
    tags: tuple[str, ...]
    environment: tuple[str, ...]
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mount:
    """A file or folder of this machine inside a container."""

    source: Path
    target: str
    read_only: bool = True

    @property
    def argument(self) -> str:
        # Quoted as the CSV that --mount reads, so that a comma in a path stays part of the path.
        fields = ["type=bind", f"source={self.source}", f"target={self.target}"]
        fields += ["readonly"] if self.read_only else []
        return ",".join('"' + field.replace('"', '""') + '"' for field in fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolResult:
    """How a container ended. stdout and stderr: at most the last 2,000 lines of each."""

    exit_code: int
    stdout: str
    stderr: str


class ToolSettings(TypedDict, total=False):
    """How a command runs in a container.

    gpus:    UUIDs of the only GPUs that it sees.
    workdir: a folder inside the container, by default /tmp.
    user:    uid:gid; by default the caller's own.
    options: further options of ``docker run``.
    on_line: called with each line of stderr, from another thread.
    """

    mounts: Sequence[Mount]
    environment: Mapping[str, str] | None
    gpus: Sequence[str]
    network: Literal["none", "host"]
    workdir: str
    user: str | None
    options: Sequence[str]
    on_line: Callable[[str], None] | None


def parse_version(text: str) -> Version | None:
    """Return the numbers at the start of ``26.1.5+dfsg1`` or ``v0.13.1``, or None where there are none."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    try:
        return Version(match.group()) if match else None
    except InvalidVersion:
        return None


def _take_over_context() -> None:
    """Say in DOCKER_HOST what the docker context in use says, for us and for every docker that we start.

    The SDK does not ask for contexts, and a build names the builder `default`, which is DOCKER_HOST's engine.
    """
    name = os.environ.get("DOCKER_CONTEXT") or _context_in_use()
    if os.environ.get("DOCKER_HOST") or name == "default":
        return
    asked = ["docker", "context", "inspect", name]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
        (context,) = json.loads(told.stdout)
        endpoint, storage = context["Endpoints"]["docker"], context["Storage"]["TLSPath"]
    except subprocess.CalledProcessError as error:
        raise EngineMissingError(str(error.stderr).strip()) from error
    except (OSError, ValueError, LookupError) as error:
        raise EngineMissingError(f"docker context {name}: {error}") from error
    os.environ["DOCKER_HOST"] = endpoint["Host"]
    certificates = Path(storage, "docker")
    if certificates.is_dir():
        os.environ["DOCKER_CERT_PATH"] = str(certificates)
        os.environ["DOCKER_TLS_VERIFY"] = "" if endpoint.get("SkipTLSVerify") else "1"


def _context_in_use() -> str:
    """Return what `docker context use` wrote down last; a file that says nothing means the default."""
    folder = os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker"
    try:
        return str(json.loads(Path(folder, "config.json").read_bytes()).get("currentContext") or "default")
    except (OSError, ValueError, AttributeError):
        return "default"


class Engine:
    """One Docker Engine, the one that the docker CLI takes: DOCKER_HOST, else the context in use, else the
    local one.
    """

    @functools.cached_property
    def _client(self) -> "docker.DockerClient":
        import docker

        _take_over_context()
        try:
            client = docker.from_env(timeout=600)
            client.ping()
        except (docker.errors.DockerException, OSError) as error:
            raise EngineMissingError(str(error)) from error
        return client

    @functools.cached_property
    def versions(self) -> EngineVersions:
        """What the engine is. Raises: EngineMissingError."""
        with _engine_errors("docker info"):
            info = self._client.info()
        status = [str(value) for pair in info.get("DriverStatus") or [] for value in pair]
        return EngineVersions(
            id=info["ID"],
            engine=info["ServerVersion"],
            containerd_store=any("io.containerd.snapshotter" in value for value in status),
            buildx=_buildx_version(),
            data_root=info["DockerRootDir"],
            cdi_folders=tuple(info.get("CDISpecDirs") or ()),
            nvidia_runtime="nvidia" in (info.get("Runtimes") or {}),
            kernel=info["KernelVersion"],
            architecture=info["Architecture"],
        )

    def require_suitable(self) -> None:
        """Raise EngineMissingError or EngineTooOldError unless images can be built and run here."""
        versions = self.versions
        engine = parse_version(versions.engine)
        if engine is not None and engine < ENGINE_FLOOR:
            raise EngineTooOldError("Docker Engine", found=versions.engine, floor=str(ENGINE_FLOOR))
        if not versions.containerd_store:
            raise ImageStoreError
        buildx = parse_version(versions.buildx or "")
        if versions.buildx is None or (buildx is not None and buildx < BUILDX_FLOOR):
            raise EngineTooOldError("docker buildx", found=versions.buildx or "none", floor=str(BUILDX_FLOOR))

    def image(self, reference: str) -> ImageInfo | None:
        """Return the local image that ``reference`` names, or None."""
        import docker

        with _engine_errors(f"docker image inspect {reference}"):
            try:
                found = self._client.api.inspect_image(reference)
            except docker.errors.NotFound:
                return None
        config = found.get("Config") or {}
        return ImageInfo(
            id=found["Id"],
            diff_ids=tuple((found.get("RootFS") or {}).get("Layers") or ()),
            size_bytes=found["Size"],
            tags=tuple(found.get("RepoTags") or ()),
            environment=tuple(config.get("Env") or ()),
            labels=config.get("Labels") or {},
        )

    @contextlib.contextmanager
    def saved(self, image_id: str) -> Iterator[tarfile.TarFile]:
        """Open a local image as ``docker save`` writes it: an OCI layout, read from front to back."""
        with _engine_errors(f"docker save {image_id}"):
            chunks = self._client.api.get_image(image_id)
            with (
                contextlib.closing(chunks),
                tarfile.open(fileobj=_Chunks(chunks), mode="r|", bufsize=2**20) as archive,
            ):
                yield archive

    def load(self, archive: Iterator[bytes], *, name: str) -> None:
        """Take in an OCI layout that comes as a tar, piece by piece, and unpack its image ``name``."""
        with _engine_errors(f"docker load ({name})"):
            for event in self._client.api.load_image(archive):
                if "error" in event:
                    raise EngineCallError(f"docker load ({name})", str(event["error"]))

    def tag(self, image_id: str, repository: str, tag: str) -> None:
        """Let ``repository:tag`` name the image from now on."""
        with _engine_errors(f"docker tag {image_id} {repository}:{tag}"):
            self._client.api.tag(image_id, repository, tag)

    def untag(self, reference: str) -> None:
        """Remove one name of an image; the image goes when it has no other. Nothing happens when there is
        none.
        """
        import docker

        with _engine_errors(f"docker rmi {reference}"), contextlib.suppress(docker.errors.ImageNotFound):
            self._client.api.remove_image(reference, noprune=False)

    def registry_addresses(self, registry: str) -> tuple[str, ...]:
        """Return where this engine asks for images of ``registry``, best first: its mirrors, then itself."""
        with _engine_errors("docker info"):
            known = self._client.info().get("RegistryConfig") or {}
        own = (known.get("IndexConfigs") or {}).get(registry) or {}
        is_secure = own.get("Secure", not _is_loopback(registry))
        host = "registry-1.docker.io" if registry == "docker.io" else registry
        return *(own.get("Mirrors") or ()), f"{'https' if is_secure else 'http'}://{host}"

    def ensure_pulled(self, reference: str, *, reporter: Reporter) -> None:
        """Bring ``repository@digest`` into the local store, unless it is there, with the credentials of the
        docker configuration. Raises: PullError.
        """
        import docker

        if self.image(reference) is not None:
            return
        repository, _, digest = reference.partition("@")
        progress: dict[str, tuple[int, int]] = {}
        with _engine_errors(f"docker pull {reference}"):
            try:
                events = self._client.api.pull(
                    repository, tag=digest, platform=_PLATFORM, stream=True, decode=True
                )
                for event in events:
                    if "error" in event:
                        raise PullError(reference, reason=str(event["error"]))
                    if (amount := event.get("progressDetail")) and event.get("status") == "Downloading":
                        progress[event["id"]] = (amount.get("current", 0), amount.get("total", 0))
                        done, total = (sum(part) / 1e6 for part in zip(*progress.values(), strict=True))
                        reporter.status(f"pulling {repository}: {done:,.0f} of {total:,.0f} MB")
            except docker.errors.APIError as error:
                raise PullError(reference, reason=str(error.explanation or error)) from error
        reporter.line(f"pulled {reference}")

    def local_base(self, reference: str) -> str:
        """Return another name of the pulled ``repository@digest``, that builds start from without its
        registry.
        """
        tag = reference.rpartition(":")[2][:16]
        self.tag(reference, BASE_REPOSITORY, tag)
        return f"{BASE_REPOSITORY}:{tag}"

    def ensure_root(self, digest: str, tar: Path, *, created_s: int) -> str:
        """Return the name of the image that holds exactly the root file system ``tar``; load it when it is
        new.

        digest:    sha256 of the tar; the engine's layer must have it, so a moved name is never taken.
        created_s: the moment that the image names as its own.
        Raises: CorruptFileError; EngineCallError.
        """
        name = f"{ROOT_REPOSITORY}:{digest.removeprefix('sha256:')[:16]}"
        root = root_image(digest, size_bytes=tar.stat().st_size, created_s=created_s)
        found = self.image(name)
        if found is None or found.id != root.descriptor.digest:
            if (rotten := hash_file(tar)) != digest:  # the engine would say so in words of its own
                raise CorruptFileError(str(tar), expected=digest, found=rotten)
            with tempfile.TemporaryDirectory(prefix="repro-image-") as folder:
                blobs = {digest: tar}
                for document in (root.config, root.manifest):
                    blobs[sha256_digest(document)] = path = Path(folder, sha256_digest(document))
                    path.write_bytes(document)
                load_image(name, root.descriptor, blobs)
            found = self.image(name)
        if found is None or found.diff_ids != (digest,):
            raise EngineCallError(
                f"docker load of {tar} as {name}", f"the layer is {found and found.diff_ids}, not {digest}"
            )
        return name

    def run_tool(
        self, image: str, command: Sequence[str], *, timeout_s: float = 600, **settings: Unpack[ToolSettings]
    ) -> ToolResult:
        """Run ``command`` in a new container that has no rights and ends with this process, and return how
        it ended.

        Raises: ContainerTimeoutError; NoGpuAccessError; EngineCallError when the container could not be
                started.
        """
        with self.started_tool(image, command, **settings) as tool:
            result = tool.wait(timeout_s=timeout_s)
        if result is None:
            raise ContainerTimeoutError(list(command), timeout_s=timeout_s)
        return result

    @contextlib.contextmanager
    def started_tool(
        self, image: str, command: Sequence[str], **settings: Unpack[ToolSettings]
    ) -> Iterator["RunningTool"]:
        """Start ``command`` as ``run_tool`` does; it ends with the block, or with this process."""
        gpus = settings.get("gpus", ())
        gpu_options, gpu_environment = self._gpus(gpus)
        name = f"repro-image-{uuid.uuid4().hex[:12]}"
        supervisor = Mount(source=RUNNER_FOLDER / "supervise.py", target=_SUPERVISOR)
        arguments = ["docker", "run", "--rm", "-i", "--pull", "never", "--name", name]
        arguments += ["--network", settings.get("network", "none")]
        arguments += ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        arguments += ["--tmpfs", "/tmp:exec,mode=1777", "--log-driver", "none"]  # noqa: S108
        arguments += ["--workdir", settings.get("workdir", "/tmp")]  # noqa: S108 - inside the container
        arguments += ["--user", settings.get("user") or f"{os.getuid()}:{os.getgid()}"]
        arguments += [*gpu_options, *settings.get("options", ())]
        mounts = (supervisor, *settings.get("mounts", ()))
        arguments += [part for mount in mounts for part in ("--mount", mount.argument)]
        variables = {**(settings.get("environment") or {}), **gpu_environment}
        arguments += [part for key in sorted(variables) for part in ("--env", f"{key}={variables[key]}")]
        arguments += ["--entrypoint", "python3", image, _SUPERVISOR, *command]
        with _running(arguments, name=name) as process:
            yield RunningTool(process, gpus=gpus, on_line=settings.get("on_line"))

    def _gpus(self, uuids: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return the options and variables with which a container sees these GPUs and no others."""
        # An engine whose default runtime is NVIDIA's would give all GPUs to an image that says so itself.
        nothing_else = {"NVIDIA_VISIBLE_DEVICES": "void"}
        if not uuids:
            return [], nothing_else
        if set(uuids) <= device_names(self.versions.cdi_folders):
            return [part for name in uuids for part in ("--device", f"{KIND}={name}")], nothing_else
        return ["--gpus", f'"device={",".join(uuids)}"'], {}  # quoted as the CSV that --gpus reads


class RunningTool:
    """A command in a container that was started; its last lines are read all the time."""

    def __init__(
        self,
        process: "subprocess.Popen[str]",
        *,
        gpus: Sequence[str],
        on_line: Callable[[str], None] | None,
    ) -> None:
        self._process, self._gpus, self._on_line = process, gpus, on_line
        self._lines: dict[str, deque[str]] = {"out": deque(maxlen=2000), "err": deque(maxlen=2000)}
        pairs = ((process.stdout, "out"), (process.stderr, "err"))
        self._threads = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in pairs]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: IO[str], key: str) -> None:
        with contextlib.suppress(ValueError):  # closed under us when the run is cut short
            for line in iter(functools.partial(stream.readline, _LINE_LENGTH), ""):
                self._lines[key].append(line)
                if key == "err" and self._on_line is not None:
                    self._on_line(line.rstrip("\n"))

    @property
    def stderr(self) -> str:
        """The last lines so far."""
        return "".join(tuple(self._lines["err"]))

    def wait(self, *, timeout_s: float) -> ToolResult | None:
        """Return how the command ended, or None where it still runs after ``timeout_s``.

        Raises: NoGpuAccessError; EngineCallError when the container could not be started.
        """
        deadline = time.monotonic() + timeout_s
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)
        for thread in self._threads:
            thread.join(timeout=_STOP_S)
        stdout, stderr = "".join(self._lines["out"]), self.stderr
        if self._process.returncode == 125:  # docker's own: the container never started
            output = stderr.strip()[-2000:]
            if self._gpus and any(words in output for words in _NO_GPUS):
                raise NoGpuAccessError(self._gpus, output)
            raise EngineCallError("docker run", output)
        return ToolResult(exit_code=self._process.returncode, stdout=stdout, stderr=stderr)


@contextlib.contextmanager
def _engine_errors(command: str) -> Iterator[None]:
    """Turn what the SDK raises when the engine refuses, hangs up or ends into EngineCallError."""
    import docker
    import requests

    try:
        yield
    except ReproImageError:
        raise
    except (docker.errors.DockerException, requests.RequestException, OSError, tarfile.TarError) as error:
        raise EngineCallError(command, str(error)) from error


@contextlib.contextmanager
def _running(arguments: Sequence[str], *, name: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the docker CLI in a session of its own, so that Ctrl-C reaches it through us and in order."""
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise EngineMissingError("the program `docker` is not on PATH") from error
    try:
        yield process
    finally:
        _end(process, name=name)


def _end(process: "subprocess.Popen[str]", *, name: str) -> None:
    """Close the container's standard input, which ends it; kill it when that does not help."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(subprocess.TimeoutExpired):  # an engine that hangs must not hang us
            subprocess.run(["docker", "kill", name], capture_output=True, check=False, timeout=_STOP_S)
        process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _buildx_version() -> str | None:
    try:
        run = subprocess.run(
            ["docker", "buildx", "version"], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = parse_version(run.stdout) if run.returncode == 0 else None
    return str(version) if version else None


def _is_loopback(registry: str) -> bool:
    host = registry.partition(":")[0]
    return host == "localhost" or host.startswith("127.")


class _Chunks(io.RawIOBase):
    """An iterator of bytes as a file that tarfile can read forwards."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = iter(chunks), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
            if not self._rest:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
