"""The command line as a process of its own: exit codes, streams, help."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from repro_image.cli import COMMANDS, group
from repro_image.cli.screen import Screen, printable
from repro_image.steps.init import lay_out_project

PROGRAM = Path(sys.executable).with_name("repro-image")
NO_ENGINE = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}


def run(
    *arguments: str | Path, folder: Path, **environment: str | None
) -> "subprocess.CompletedProcess[str]":
    settings = {**os.environ, **NO_ENGINE, **environment}
    done = subprocess.run(
        [PROGRAM, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={key: value for key, value in settings.items() if value is not None},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def project(tmp_path: Path) -> Path:
    lay_out_project(tmp_path / "p")
    return tmp_path / "p"


def commands(command: click.Command = group, name: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        yield name
        return
    context = click.Context(command)
    for child in command.list_commands(context):
        found = command.get_command(context, child)
        assert found is not None
        yield from commands(found, (*name, child))


def options(name: tuple[str, ...]) -> set[str]:
    command: click.Command = group
    for part in name:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), part)
        assert found is not None
        command = found
    return {option for parameter in command.params for option in parameter.opts}


# A bill of materials has no other form.
ALWAYS_JSON = {("images", "sbom")}


def test_every_command_is_found() -> None:
    assert {name[0] for name in commands()} == set(COMMANDS)


@pytest.mark.parametrize("name", list(commands()), ids=" ".join)
def test_the_help_of_every_command_has_an_example_and_json(name: tuple[str, ...]) -> None:
    command: click.Command = group
    context = click.Context(command, info_name="repro-image")
    for part in name:
        assert isinstance(command, click.Group)
        found = command.get_command(context, part)
        assert found is not None
        command, context = found, click.Context(found, info_name=part, parent=context)
    text = command.get_help(context)
    assert "Example" in text
    assert "repro-image " + " ".join(name) in text.partition("Example")[2]
    assert "--json" in options(name) or name in ALWAYS_JSON


def test_help_and_version_go_to_stdout(tmp_path: Path) -> None:
    for arguments in (["--help"], ["-h"], ["lock", "--help"], ["epochs", "show", "--help"]):
        done = run(*arguments, folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: repro-image")
    assert run("--version", folder=tmp_path).stdout == "repro-image, version 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["lock", "--frob"], "No such option"),
        (["--project", "nowhere", "lock"], "does not exist"),
        (["verify"], "Missing argument"),
        (["verify", "e0001", "--repeat", "0"], "--repeat"),
        (["render", "nothing"], "the project has no image 'nothing' (known: vllm-cpu)"),
        (["render", "../vllm-cpu"], "the project has no image '../vllm-cpu'"),
        (["verify", "v1\n"], "'v1\\n' is not an image reference"),
        (["verify", "--", "-rf"], "'-rf' is not an image reference"),
        (["verify", "e0001", "--set", "dtype"], "--set 'dtype' is not understood"),
        (["verify", "e0001", "--set", "dtype=x", "--record"], "--record does not go with --set"),
        (["verify", "e0001", "--report", "x.pdf"], "no report has the suffix of 'x.pdf'"),
    ],
)
def test_wrong_usage_exits_with_2_and_is_told_on_stderr(
    project: Path, arguments: list[str], told: str
) -> None:
    done = run(*arguments, folder=project)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_outside_of_a_project_commands_exit_with_3(tmp_path: Path) -> None:
    for arguments in (["lock"], ["render"], ["build"], ["fetch"], ["check"], ["epochs", "list"]):
        done = run(*arguments, folder=tmp_path)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.startswith("error: there is no repro-image project here\n  where: ")
        assert "repro-image init" in done.stderr


def test_a_broken_image_toml_exits_with_3_and_names_the_key(project: Path) -> None:
    path = project / "images/vllm-cpu/image.toml"
    path.write_text(path.read_text().replace("threads = 2", 'threads = "2"'))
    done = run("render", folder=project)
    assert done.returncode == 3
    assert done.stderr == (
        "error: Expected `int`, got `str` - at `$.golden.threads`\n"
        "  where: images/vllm-cpu/image.toml\n"
        "  fix:   correct the file at the place named\n"
    )


def test_a_missing_lock_exits_with_3_and_names_the_command(project: Path) -> None:
    done = run("render", folder=project)
    assert (done.returncode, done.stdout) == (3, "")
    assert "fix:   run `repro-image lock vllm-cpu`" in done.stderr


def test_a_command_works_from_a_folder_below_and_with_project(project: Path, tmp_path: Path) -> None:
    below = run("epochs", "list", folder=project / "images/vllm-cpu")
    named = run("--project", project, "epochs", "list", folder=tmp_path)
    assert (below.returncode, below.stdout) == (named.returncode, named.stdout) == (0, below.stdout)


@pytest.mark.parametrize(
    "arguments",
    [["fingerprint"], ["doctor"], ["check"], ["epochs", "list"], ["epochs", "check"], ["init", "new"]],
    ids=" ".join,
)
def test_json_is_one_document_on_stdout(project: Path, arguments: list[str]) -> None:
    done = run(*arguments, "--json", folder=project)
    assert done.returncode in (0, 4, 5), done.stderr
    assert isinstance(json.loads(done.stdout), dict | list)


def test_without_an_engine_doctor_says_so_and_exits_with_5(project: Path) -> None:
    done = run("doctor", folder=project)
    assert done.returncode == 5
    assert "no Docker Engine" in done.stdout


def test_no_colour_where_stderr_is_no_terminal(project: Path) -> None:
    for colour in (None, "1"):
        done = run("render", folder=project, NO_COLOR=colour)
        assert "\x1b" not in done.stderr + done.stdout


def on_terminal(folder: Path, *arguments: str, **environment: str) -> bytes:
    """Return what the program prints on a terminal."""
    leader, follower = os.openpty()
    settings = {**os.environ, **NO_ENGINE, "TERM": "xterm", **environment}
    with subprocess.Popen(
        [PROGRAM, *arguments], cwd=folder, stdin=follower, stdout=follower, stderr=follower, env=settings
    ) as process:
        os.close(follower)
        printed = b""
        try:
            while chunk := os.read(leader, 4096):
                printed += chunk
        except OSError:  # the program was the last to hold the other end
            pass
    os.close(leader)
    assert process.returncode == 3
    return printed


def test_no_color_prints_no_escape_on_a_terminal_either(tmp_path: Path) -> None:
    assert b"\x1b" in on_terminal(tmp_path, "render")
    assert b"\x1b" not in on_terminal(tmp_path, "render", NO_COLOR="1")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["fingerprint", "--json"], ["epochs", "--help"]], ids=" ".join
)
def test_a_reader_that_stops_early_is_no_error(tmp_path: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # what `| head` does, but before the first byte: no race
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [PROGRAM, *arguments],
            cwd=tmp_path,
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
            env={**os.environ, **NO_ENGINE},
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_that_stops_early_changes_neither_the_work_nor_its_verdict(
    tmp_path: Path, name: str
) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from repro_image import cli\n"
        "from repro_image.cli.screen import Screen\n"
        "from repro_image.steps import init\n"
        "def work(folder, image):\n"
        "    with Screen() as screen:\n        screen.line('begun')\n        screen.line('goes on')\n"
        "    print('report', flush=True)\n"
        "    Path('done').touch()\n"
        "    sys.exit(10)\n"
        "init.lay_out_project = work\n"
        "sys.argv = ['repro-image', 'init', 'x']\n"
        "cli.main()\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        outlets: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, name: pipe}
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, timeout=60, **outlets)
    assert done.returncode == 10
    assert (tmp_path / "done").exists()
    assert b"Traceback" not in (done.stderr or b"")


def test_a_full_disk_anywhere_is_told_with_exit_code_5(tmp_path: Path) -> None:
    code = (
        "import errno, sys\n"
        "from repro_image import cli\n"
        "from repro_image.steps import init\n"
        "def full(folder, image):\n    raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "init.lay_out_project = full\n"
        "sys.argv = ['repro-image', 'init', 'x']\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 5
    assert done.stderr.startswith("error: the disk is full: more room needed\n")


def test_a_full_disk_behind_stdout_is_told_once() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [PROGRAM, "--help"], stdout=full, stderr=subprocess.PIPE, check=False, timeout=60
        )
    assert done.returncode == 5
    told = done.stderr.decode().splitlines()
    assert told[:2] == ["error: the disk is full: more room needed", "  where: standard output"]
    assert len(told) == 3


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_a_library_says_is_not_lost_with_a_killed_process(unbuffered: str) -> None:
    code = (
        "import os, sys\n"
        "from repro_image.cli import _patient\n"
        "sys.stderr = _patient(sys.stderr)\n"
        "sys.stderr.write('a line\\n')\n"
        "os._exit(0)\n"
    )
    settings = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == "a line\n"


def test_a_closed_stdout_is_no_traceback(tmp_path: Path) -> None:
    shell = ["sh", "-c", 'exec "$0" fingerprint >&-', str(PROGRAM)]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, check=False, timeout=60, env=os.environ)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("settings", [{"LC_ALL": "C"}, {"LANG": "C", "LC_ALL": None}, {"COLUMNS": "0"}])
def test_a_plain_locale_or_no_columns_are_no_error(project: Path, settings: dict[str, str | None]) -> None:
    for arguments in (["fingerprint"], ["epochs", "list"], ["doctor", "--json"]):
        done = run(*arguments, folder=project, **settings)
        assert done.returncode in (0, 5), done.stderr


def test_without_home_and_passwd_entry_the_store_is_told_to_be_named(project: Path) -> None:
    code = (
        "import os, pwd, sys\n"
        "pwd.getpwuid = lambda uid: (_ for _ in ()).throw(KeyError(uid))\n"
        "from repro_image.cli import App\n"
        "from pathlib import Path\n"
        "try:\n    print(App(start=Path.cwd(), store=None).store.root)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("FolderError cannot write here: this user has no home folder")
    assert not (project / "~").exists()
    settings = {**environment, "XDG_CACHE_HOME": "/x"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=settings, capture_output=True, text=True, check=True
    )
    assert done.stdout == "/x/repro-image\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_exits_as_the_shell_expects(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    slow = (
        "import sys, time\n"
        "from repro_image import cli\n"
        "from repro_image.steps import init\n"
        "def wait(folder, image):\n    print('waiting', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
        "init.lay_out_project = wait\n"
        "sys.argv = ['repro-image', 'init', 'x']\n"
        "cli.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", slow], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting\n"
        begin = time.monotonic()
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == code
    assert "Traceback" not in rest
    assert time.monotonic() - begin < 10


def test_control_characters_in_an_error_do_not_reach_the_terminal(project: Path) -> None:
    path = project / "images/vllm-cpu/image.toml"
    path.write_text('format = 1\n"\x1b[2Jx" = 1\n'.replace("\x1b", "\\u001b"))
    done = run("render", folder=project)
    assert done.returncode == 3
    assert "\x1b" not in done.stderr
    done = run("render", "a\x1b[31mb\x07\n", folder=project)
    assert "\x1b" not in done.stderr
    assert "\x07" not in done.stderr


def test_printable_keeps_text_and_escapes_what_moves_the_cursor() -> None:
    assert printable("naïve 漢字") == "naïve 漢字"
    assert printable("a\x1b[2J\r\n\tb\u202e\x9b\ud800") == "a\\x1b[2J\\r\\n\\tb\\u202e\\x9b\\ud800"


def test_in_a_pipe_progress_is_plain_lines_and_statuses_are_rare(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen() as screen:
        for _ in range(100):
            screen.status("working")
        screen.line("done \x1b[31m")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.endswith("s  done \\x1b[31m\n")
