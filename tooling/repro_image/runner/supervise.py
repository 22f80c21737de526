"""First process of a golden run's container: runs a command, and ends it when standard input ends.

usage: python supervise.py COMMAND [ARGUMENT]...

Standard input is a leash: the client holds its other end (`docker run --interactive`), so a killed client
leaves no container behind, even while the command is busy inside a C function that never looks at signals.
Standard library only; exits with the command's code, 128 + n for signal n, 127 where it cannot be started.
"""

import os
import select
import signal
import sys
import time

GRACE_S = 3.0  # between the polite signal and SIGKILL, and again until a killed process has to be gone
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_PASSED_ON = (*_ENDING, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGWINCH)


def supervise(command: list[str]) -> int:
    """Run ``command`` in a session of its own until it, or standard input, ends; return the exit code."""
    wakeups = _wakeup_pipe()
    try:
        child = os.posix_spawnp(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setsid=True,
            setsigdef=[signal.SIGPIPE],
        )
    except OSError as error:
        print(f"supervise: cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    try:
        return _wait(child, wakeups)
    finally:
        _kill(child, signal.SIGKILL)  # whatever the command left running in its session's first group


def _wakeup_pipe() -> int:
    """Return the end of a pipe that yields the number of each signal that arrives."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (*_PASSED_ON, signal.SIGCHLD):
        # The first process of a container gets only those signals that it has a handler for.
        signal.signal(number, lambda *_: None)
    return read_end


def _wait(child: int, wakeups: int) -> int:
    watched, deadline, killed = [0, wakeups], None, False
    while True:
        if (code := _reap(child)) is not None:
            return code
        pause = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select(watched, [], [], pause)
        numbers = _read(wakeups) if wakeups in ready else b""
        for number in set(numbers) - {signal.SIGCHLD}:
            _kill(child, number)
        is_ending = any(number in _ENDING for number in numbers)
        if 0 in ready and not _read(0):
            watched.remove(0)
            _kill(child, signal.SIGTERM)
            is_ending = True
        if deadline is None and is_ending:
            deadline = time.monotonic() + GRACE_S
        elif deadline is not None and time.monotonic() >= deadline:
            if killed:  # not even SIGKILL ended it; leaving ends the container
                return 128 + signal.SIGKILL
            _kill(child, signal.SIGKILL)
            killed, deadline = True, time.monotonic() + GRACE_S


def _read(handle: int) -> bytes:
    """Return what is there to read; nothing where the other end is closed or ``handle`` is not open."""
    try:
        return os.read(handle, 4096)
    except BlockingIOError:
        return b"\0" if handle == 0 else b""
    except OSError:
        return b""


def _reap(child: int) -> int | None:
    """Collect every process that ended, orphans too; return the exit code of ``child`` once it did."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            result = os.waitstatus_to_exitcode(status)
            code = result if result >= 0 else 128 - result


def _kill(child: int, number: int) -> None:
    try:
        os.killpg(child, number)
    except (ProcessLookupError, PermissionError):
        return


def main() -> int:
    if len(sys.argv) < 2:
        print("usage: supervise.py COMMAND [ARGUMENT]...", file=sys.stderr)
        return 2
    try:
        os.fstat(0)
    except OSError:  # without a leash nothing may run; /dev/null ends at once
        os.open(os.devnull, os.O_RDONLY)
    return supervise(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
