"""adapters/engine.py with a real Docker Engine, and what it says where there is none that suits."""

import gc
import hashlib
import json
import os
import signal
import socketserver
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from repro_image.adapters.buildx import build_image
from repro_image.adapters.engine import ROOT_REPOSITORY, Engine, Mount
from repro_image.adapters.image_archive import config_digest
from repro_image.errors import (
    BuildFailedError,
    ContainerTimeoutError,
    CorruptFileError,
    EngineCallError,
    EngineMissingError,
    EngineTooOldError,
    ImageStoreError,
)
from tests.integration.conftest import Quiet
from tests.registry import make_certificate
from tests.scratch import docker

pytestmark = [
    pytest.mark.docker,
    # The SDK leaves the socket of a connection that fails to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PROGRAM = Path(sys.executable).with_name("repro-image")

# Runs a container for a minute; the test kills this process meanwhile.
HELPER = """
import sys
from repro_image.adapters.engine import Engine
Engine().run_tool(sys.argv[1], ["python3", "-c", sys.argv[2]], on_line=lambda line: print(line, flush=True))
"""


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect what a test leaves while its own filters of warnings hold."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


def python(engine: Engine, image: str, code: str, **settings: object) -> str:
    result = engine.run_tool(image, ["python3", "-c", code], timeout_s=60, **settings)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.stderr
    return result.stdout


def containers(image: str) -> list[str]:
    """Return the names of the containers of ``image``: of these tests, whatever else the engine runs."""
    listed = ["docker", "ps", "--all", "--format", "{{.Image}} {{.Names}}"]
    rows = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for used, _, name in (row.partition(" ") for row in rows) if used == image]


def wait_until_gone(image: str) -> None:
    begin = time.monotonic()
    while containers(image) and time.monotonic() - begin < 30:
        time.sleep(0.2)


def make_tar(folder: Path, text: str) -> tuple[Path, str]:
    (folder / "file").write_text(text)
    tar = folder / "root.tar"
    with tarfile.open(tar, "w") as archive:
        archive.add(folder / "file", arcname="file")
    return tar, f"sha256:{hashlib.sha256(tar.read_bytes()).hexdigest()}"


def test_the_engine_of_this_machine_is_suitable(engine: Engine) -> None:
    engine.require_suitable()
    assert engine.versions.containerd_store
    assert engine.versions.buildx is not None


def test_a_root_is_loaded_once_under_a_name_made_from_its_digest(engine: Engine, tmp_path: Path) -> None:
    tar, digest = make_tar(tmp_path, f"{time.time_ns()}")
    name = f"{ROOT_REPOSITORY}:{digest[7:23]}"
    try:
        assert engine.image(name) is None
        assert engine.ensure_root(digest, tar, created_s=1_000_000) == name
        first = engine.image(name)
        assert first is not None
        assert first.diff_ids == (digest,)
        tar.write_bytes(bytes(tar.stat().st_size))  # not needed any more
        assert engine.ensure_root(digest, tar, created_s=1_000_000) == name
        assert engine.image(name) == first
        assert config_digest(engine, first) != first.id
    finally:
        engine.untag(name)
    assert engine.image(name) is None
    engine.untag(name)


def test_a_loaded_root_holds_no_clock_and_an_imported_one_is_replaced(engine: Engine, tmp_path: Path) -> None:
    tar, digest = make_tar(tmp_path, f"{time.time_ns()}")
    name = f"{ROOT_REPOSITORY}:{digest[7:23]}"
    docker("import", str(tar), name)
    imported = engine.image(name)
    assert imported is not None
    try:
        engine.ensure_root(digest, tar, created_s=1_000_000)
        times = docker("image", "inspect", "--format", "{{.Created}}", name)
        history = docker("history", "--human=false", "--format", "{{.CreatedAt}}", name)
        assert times == "1970-01-12T13:46:40Z"
        assert history.startswith("1970-01-12T13:46:40")
    finally:
        for reference in (name, imported.id):
            engine.untag(reference)


def test_a_name_that_was_moved_to_another_root_is_not_taken(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tar, digest = make_tar(tmp_path / "a", f"a{time.time_ns()}")
    other_tar, other = make_tar(tmp_path / "b", f"b{time.time_ns()}")
    name, other_name = (
        engine.ensure_root(each, file, created_s=1) for each, file in ((digest, tar), (other, other_tar))
    )
    first, found = engine.image(name), engine.image(other_name)
    assert first is not None
    assert found is not None
    try:
        engine.tag(found.id, *name.rsplit(":", 1))
        engine.ensure_root(digest, tar, created_s=1)
        moved_back = engine.image(name)
        assert moved_back is not None
        assert moved_back.diff_ids == (digest,)
        with pytest.raises(CorruptFileError, match=digest) as caught:
            engine.ensure_root("sha256:" + "0" * 64, tar, created_s=1)
        assert caught.value.path == str(tar)
    finally:
        # By id, too: an image that lost its name to another one stays.
        for reference in (name, other_name, first.id, found.id):
            engine.untag(reference)


def test_a_tool_gives_back_exit_code_stdout_and_stderr(engine: Engine, image: str) -> None:
    told: list[str] = []
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"
    result = engine.run_tool(image, ["python3", "-c", code], on_line=told.append)
    assert (result.exit_code, result.stdout, result.stderr, told) == (7, "out\n", "err\n", ["err"])


def test_a_tool_that_does_not_exist_exits_with_127(engine: Engine, image: str) -> None:
    assert engine.run_tool(image, ["frobnicate"]).exit_code == 127


def test_a_tool_has_no_network_but_lo(engine: Engine, image: str) -> None:
    assert python(engine, image, "import os; print(os.listdir('/sys/class/net'))") == "['lo']\n"


def test_a_tool_is_the_asked_user_without_rights_on_a_read_only_root(engine: Engine, image: str) -> None:
    code = """
import os
print(os.getuid(), os.getgid(), os.getcwd())
status = open("/proc/self/status").read()
wanted = ("CapEff", "CapBnd", "NoNewPrivs")
print([line.split()[1] for line in status.splitlines() if line.startswith(wanted)])
for path in ("/x", "/etc/x", "/usr/x"):
    try:
        open(path, "w")
    except OSError as error:
        print(error.strerror)
open("/tmp/x", "w")
"""
    assert python(engine, image, code, user="1000:1000").splitlines() == [
        "1000 1000 /tmp",
        "['0000000000000000', '0000000000000000', '1']",
        *["Read-only file system"] * 3,
    ]


def test_a_mount_is_read_only_unless_asked_and_may_have_a_comma_in_its_name(
    engine: Engine, image: str, tmp_path: Path
) -> None:
    folder = tmp_path / 'a,b "c"'
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    (folder / "in").write_text("x")
    read_only = [Mount(source=folder, target="/data")]
    assert python(engine, image, "print(open('/data/in').read())", mounts=read_only) == "x\n"
    failed = engine.run_tool(image, ["python3", "-c", "open('/data/out', 'w')"], mounts=read_only)
    assert "Read-only file system" in failed.stderr
    python(
        engine,
        image,
        "open('/data/out', 'w').write('y')",
        mounts=[Mount(source=folder, target="/data", read_only=False)],
        user="1000:1000",
    )
    assert (folder / "out").read_text() == "y"
    assert (folder / "out").stat().st_uid == 1000


def test_the_environment_is_passed_on_as_it_is(engine: Engine, image: str) -> None:
    printed = python(engine, image, "import os; print(os.environ['A'])", environment={"A": "1 $B 'x'"})
    assert printed == "1 $B 'x'\n"


def test_a_tool_that_runs_too_long_is_ended_and_leaves_no_container(engine: Engine, image: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ContainerTimeoutError) as caught:
        engine.run_tool(image, ["python3", "-c", "import time; time.sleep(300)"], timeout_s=3)
    assert caught.value.exit_code == 5
    wait_until_gone(image)
    assert time.monotonic() - begin < 3 + 10


def test_an_image_that_is_not_there_is_told_and_never_pulled(engine: Engine) -> None:
    with pytest.raises(EngineCallError) as caught:
        engine.run_tool("repro-image/nothing:here", ["true"])
    assert caught.value.exit_code == 5
    assert "repro-image/nothing:here" in caught.value.output


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "busy",
    [
        "import sys, time; print('up', file=sys.stderr, flush=True); time.sleep(120)",
        # Busy inside one C call, deaf to every polite signal.
        "import signal, sys; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 15)];"
        "print('up', file=sys.stderr, flush=True); pow(3, 10**9)",
    ],
    ids=["sleeping", "deaf"],
)
def test_a_killed_client_leaves_no_container_after_10_s(
    image: str, number: signal.Signals, busy: str
) -> None:
    command = [sys.executable, "-c", HELPER, image, busy]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as helper:
        assert helper.stdout is not None
        assert helper.stdout.readline() == "up\n"
        assert len(containers(image)) == 1
        begin = time.monotonic()
        helper.send_signal(number)
        helper.wait(timeout=20)
    wait_until_gone(image)
    assert time.monotonic() - begin < 10


def test_a_small_image_is_built_twice_to_the_same_bytes(engine: Engine, image: str, tmp_path: Path) -> None:
    file, name = tmp_path / "Dockerfile", f"repro-image/test-build:{os.getpid()}"
    file.write_text(
        "FROM base AS one\n"
        "RUN --network=none mkdir /out && echo x >/out/file && touch -d @1 /out/file /out\n"
        "FROM base\nCOPY --link --from=one /out/ /\n"
    )
    contexts = {"base": f"docker-image://{image}"}
    try:
        built = [
            build_image(
                file, name=name, contexts=contexts, source_date_epoch=1, use_cache=False, reporter=Quiet()
            )
            for _ in range(2)
        ]
        assert built[0] == built[1]
        found = engine.image(name)
        assert found is not None
        assert found.id == built[0].manifest
        assert config_digest(engine, found) == built[0].config
    finally:
        engine.untag(name)


def test_a_build_step_that_fails_is_told_and_makes_no_image(
    engine: Engine, image: str, tmp_path: Path
) -> None:
    file, name = tmp_path / "Dockerfile", f"repro-image/test-fail:{os.getpid()}"
    file.write_text("FROM base\nRUN --network=none echo last words; exit 3\n")
    with pytest.raises(BuildFailedError) as caught:
        build_image(
            file,
            name=name,
            contexts={"base": f"docker-image://{image}"},
            source_date_epoch=1,
            reporter=Quiet(),
        )
    assert caught.value.lines == ("last words",)
    assert caught.value.reason.endswith("exit code: 3")
    assert engine.image(name) is None


def test_a_build_that_runs_out_of_memory_or_is_killed_is_told_with_137(image: str, tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("FROM base\nRUN --network=none sh -c 'kill -9 $$'\n")
    with pytest.raises(BuildFailedError) as caught:
        build_image(
            file,
            name=f"repro-image/test-fail:{os.getpid()}",
            contexts={"base": f"docker-image://{image}"},
            source_date_epoch=1,
            reporter=Quiet(),
        )
    assert caught.value.reason.endswith("exit code: 137")


# Where the engine is not what it must be.


@pytest.mark.parametrize("host", ["unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1", "nonsense://x"])
def test_an_engine_that_is_not_running_is_told_with_exit_code_5(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(EngineMissingError) as caught:
        Engine().require_suitable()
    assert caught.value.exit_code == 5
    assert caught.value.what.startswith("no Docker Engine answers: ")
    assert "start it" in caught.value.fix


@pytest.fixture
def context_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A function that makes a docker context for an engine at a socket, and takes it into use."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever the engine sets

    def make(path: Path) -> None:
        docker("context", "create", "other", "--docker", f"host=unix://{path}")
        docker("context", "use", "other")

    return make


def test_the_docker_context_in_use_is_taken_by_us_and_by_the_docker_that_we_start(
    context_at: Callable[[Path], None], tmp_path: Path
) -> None:
    link = tmp_path / "other.sock"
    link.symlink_to("/var/run/docker.sock")
    context_at(link)
    assert Engine().versions.folder is not None
    assert os.environ["DOCKER_HOST"] == f"unix://{link}"
    link.unlink()
    told = subprocess.run(["docker", "version"], capture_output=True, text=True, check=False)
    assert str(link) in told.stderr, "no other engine is asked"


def test_a_context_whose_engine_or_files_are_gone_is_told_by_its_name(
    context_at: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    with pytest.raises(EngineMissingError, match='context "nowhere": context not found'):
        Engine().require_suitable()
    monkeypatch.setenv("DOCKER_CONTEXT", "")
    context_at(tmp_path / "gone.sock")
    (file,) = tmp_path.glob("contexts/meta/*/meta.json")
    whole = file.read_text()
    file.write_text(whole[:20])
    with pytest.raises(EngineMissingError, match='context "other": '):
        Engine().require_suitable()
    file.write_text(whole)
    with pytest.raises(EngineMissingError, match="no Docker Engine answers"):
        Engine().require_suitable()
    assert os.environ["DOCKER_HOST"] == f"unix://{tmp_path / 'gone.sock'}"


def test_a_context_with_certificates_hands_them_on(
    context_at: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_certificate(tmp_path, "far", address="127.0.0.1")
    places = ",".join(f"{name}={file}" for name in ("ca", "cert", "key"))
    docker("context", "create", "far", "--docker", f"host=tcp://127.0.0.1:1,{places}")
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    with pytest.raises(EngineMissingError):
        Engine().require_suitable()
    assert os.environ["DOCKER_HOST"] == "tcp://127.0.0.1:1"
    assert os.environ["DOCKER_TLS_VERIFY"] == "1"
    assert (Path(os.environ["DOCKER_CERT_PATH"]) / "key.pem").read_text() == file.read_text()


def test_a_socket_that_this_user_may_not_open_is_told_as_such(tmp_path: Path) -> None:
    code = (
        "from repro_image.adapters.engine import Engine\n"
        "from repro_image.errors import EngineMissingError\n"
        "import docker, os\n"
        "os.setgid(65534), os.setuid(65534)\n"
        "try:\n    Engine().versions\n"
        "except EngineMissingError as error:\n    print(error)\n"
    )
    tmp_path.chmod(0o755)
    path = tmp_path / "docker.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), BaseHTTPRequestHandler):
        path.chmod(0o600)
        settings = {**os.environ, "DOCKER_HOST": "unix:///var/run/docker.sock"}
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=settings, check=True
        )
    assert run.stdout.startswith("the Docker Engine refuses this user: ")
    assert "add the user to the group `docker`" in run.stdout


class OldEngine(BaseHTTPRequestHandler):
    """Answers what the SDK asks first, as Docker 20.10 would."""

    version = "20.10.24"
    driver = "overlay2"

    def address_string(self) -> str:
        return "unix"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        answers = {
            "_ping": "OK",
            "version": {"Version": self.version, "ApiVersion": "1.41", "MinAPIVersion": "1.12"},
            "info": {
                "ID": "old",
                "ServerVersion": self.version,
                "DriverStatus": [["driver-type", self.driver]],
                "DockerRootDir": "/var/lib/docker",
                "KernelVersion": "5.10",
                "Architecture": "x86_64",
            },
        }
        answer = answers.get(self.path.rpartition("/")[2])
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Api-Version", "1.41")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Overlay2Engine(OldEngine):
    version = "28.0.0"


class HangingUpEngine(OldEngine):
    def do_GET(self) -> None:
        if self.path.endswith("/info"):
            return
        super().do_GET()


@pytest.fixture
def old_engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    path = tmp_path / "docker.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"unix://{path}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("old_engine", [OldEngine], indirect=True)
def test_an_engine_that_is_too_old_is_told_with_both_versions_and_exit_code_4(
    old_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", old_engine)
    with pytest.raises(EngineTooOldError) as caught:
        Engine().require_suitable()
    assert caught.value.exit_code == 4
    assert (caught.value.part, caught.value.found, caught.value.floor) == ("Docker Engine", "20.10.24", "26")


@pytest.mark.parametrize("old_engine", [Overlay2Engine], indirect=True)
def test_an_engine_without_the_containerd_image_store_is_told_with_exit_code_4(
    old_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", old_engine)
    with pytest.raises(ImageStoreError) as caught:
        Engine().require_suitable()
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("old_engine", [HangingUpEngine], indirect=True)
def test_an_engine_that_hangs_up_is_told_with_exit_code_5(
    old_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", old_engine)
    with pytest.raises(EngineCallError) as caught:
        Engine().require_suitable()
    assert (caught.value.exit_code, caught.value.command) == (5, "docker info")


@pytest.mark.parametrize("old_engine", [OldEngine], indirect=True)
def test_doctor_shows_an_old_engine_and_exits_with_5(old_engine: str, tmp_path: Path) -> None:
    settings = {**os.environ, "DOCKER_HOST": old_engine}
    run = subprocess.run(
        [PROGRAM, "doctor"], cwd=tmp_path, capture_output=True, text=True, env=settings, check=False
    )
    assert run.returncode == 5
    assert "20.10.24" in run.stdout
    assert run.stderr == ""
