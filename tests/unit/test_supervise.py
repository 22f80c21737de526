"""The supervisor as a process of its own: its leash is a real pipe, its children are real."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repro_image.runner import supervise

SUPERVISOR = (sys.executable, "-S", supervise.__file__)
READY_THEN_SLEEP = "print('ready', flush=True); import time; time.sleep(60)"
DEAF = (
    "import signal; [signal.signal(n, signal.SIG_IGN) for n in (15, 2, 1)];"
    "print('ready', flush=True); import time; time.sleep(60)"
)
# One C call that holds the interpreter: no Python signal handler can run meanwhile.
HOLDS_THE_INTERPRETER = (
    "import signal; signal.signal(15, lambda *_: None); print('ready', flush=True); sum(range(10**12))"
)


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SUPERVISOR, sys.executable, "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def close_leash(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None


def ended(process: subprocess.Popen[str], *, within_s: float) -> tuple[int, float]:
    """Return the exit code and the seconds that it took; the process is killed where it takes longer."""
    started = time.monotonic()
    try:
        process.wait(within_s)
    finally:
        process.kill()
        process.communicate(timeout=10)
    return process.returncode, time.monotonic() - started


def is_running(pid: int) -> bool:
    """Return whether ``pid`` runs; a zombie, which nobody collected yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("code", [0, 1, 3, 77])
def test_the_exit_code_is_the_commands(code: int) -> None:
    process = start(f"raise SystemExit({code})")
    assert ended(process, within_s=10)[0] == code


def test_output_passes_through_and_the_command_reads_nothing_of_the_leash() -> None:
    process = start("import sys; print('out'); print('err', file=sys.stderr); print(repr(sys.stdin.read()))")
    assert process.stdin is not None
    process.stdin.write("never read")
    process.stdin.flush()
    out = process.stdout.read() if process.stdout else ""
    err = process.stderr.read() if process.stderr else ""
    assert (out, err) == ("out\n''\n", "err\n")
    assert ended(process, within_s=10)[0] == 0


def test_a_command_that_dies_by_a_signal_gives_128_and_its_number() -> None:
    process = start("import os; os.kill(os.getpid(), 11)")
    assert ended(process, within_s=10)[0] == 128 + signal.SIGSEGV


def test_the_end_of_standard_input_ends_the_command() -> None:
    process = start(READY_THEN_SLEEP)
    wait_until_ready(process)
    close_leash(process)
    code, seconds = ended(process, within_s=10)
    assert code == 128 + signal.SIGTERM
    assert seconds < 2


@pytest.mark.parametrize("code", [DEAF, HOLDS_THE_INTERPRETER])
def test_a_command_that_ignores_the_polite_signal_is_killed_after_the_grace(code: str) -> None:
    process = start(code)
    wait_until_ready(process)
    close_leash(process)
    returned, seconds = ended(process, within_s=20)
    assert returned == 128 + signal.SIGKILL
    assert seconds >= supervise.GRACE_S - 0.5


def test_a_command_that_stops_politely_gives_its_own_code() -> None:
    process = start(
        "import signal, sys; signal.signal(15, lambda *_: sys.exit(9));"
        "print('ready', flush=True); signal.pause()"
    )
    wait_until_ready(process)
    close_leash(process)
    assert ended(process, within_s=10)[0] == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_ending_signals_are_passed_on(number: int) -> None:
    process = start(
        f"import signal, sys; signal.signal({int(number)}, lambda *_: sys.exit(21));"
        "print('ready', flush=True); signal.pause()"
    )
    wait_until_ready(process)
    process.send_signal(number)
    assert ended(process, within_s=10)[0] == 21


def test_a_deaf_command_is_killed_after_a_signal_too() -> None:
    process = start(DEAF)
    wait_until_ready(process)
    process.send_signal(signal.SIGTERM)
    assert ended(process, within_s=20)[0] == 128 + signal.SIGKILL


def test_other_signals_are_passed_on_and_end_nothing() -> None:
    process = start(
        # The handler itself exits: a signal that came just before pause() would be waited for for ever.
        "import signal, sys; signal.signal(10, lambda *_: (print('got it', flush=True), sys.exit(4)));"
        "print('ready', flush=True); signal.pause()"
    )
    wait_until_ready(process)
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    assert process.stdout.readline() == "got it\n"
    assert ended(process, within_s=10)[0] == 4


def test_children_of_the_command_end_with_it() -> None:
    process = start(
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-S', '-c', 'import signal;"
        "signal.signal(15, signal.SIG_IGN); print(1, flush=True); signal.pause()'], stdout=subprocess.PIPE);"
        "child.stdout.readline(); print(child.pid, flush=True)"
    )
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    assert ended(process, within_s=10)[0] == 0
    deadline = time.monotonic() + 10
    while is_running(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(grandchild)


def test_data_on_standard_input_is_swallowed_without_ending_anything() -> None:
    process = start("print('ready', flush=True); import time; time.sleep(1); raise SystemExit(6)")
    wait_until_ready(process)
    assert process.stdin is not None
    process.stdin.write("x" * 10_000)
    process.stdin.flush()
    assert ended(process, within_s=10)[0] == 6


def test_without_a_leash_nothing_runs_for_long() -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 0<&-', "sh", *SUPERVISOR, "sleep", "60"], timeout=20, check=False
    )
    assert result.returncode == 128 + signal.SIGTERM


def test_a_command_that_cannot_be_started_is_named() -> None:
    result = subprocess.run(
        [*SUPERVISOR, "/no/such/command"], stdin=subprocess.PIPE, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (
        127,
        "supervise: cannot start /no/such/command: No such file or directory\n",
    )


def test_without_a_command_the_usage_is_told() -> None:
    result = subprocess.run(
        [*SUPERVISOR], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (2, "usage: supervise.py COMMAND [ARGUMENT]...\n")


def test_it_imports_the_standard_library_only() -> None:
    probe = f"import runpy, sys; runpy.run_path({supervise.__file__!r}); print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-I", "-S", "-c", probe], capture_output=True, text=True, check=True, cwd=os.sep
    ).stdout
    assert {name.partition(".")[0] for name in out.split()} - sys.stdlib_module_names <= {"__main__"}
