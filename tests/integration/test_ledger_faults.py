"""The ledger under faults: a kill, a failing disk at each system call of one append; sixty writers at once.

strace injects the faults into a process that is about to append; `.ci` installs it where it is missing.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from repro_image.adapters.ledger_files import Ledger
from repro_image.errors import LedgerBusyError, LedgerDiskError, ReproImageError
from tests.ledger_samples import IMAGE, contents, sample_epoch

# Calls that go to the file system; only these can fail with an error of the disk.
DISK = (
    "openat",
    "read",
    "pread64",
    "write",
    "pwrite64",
    "ftruncate",
    "fsync",
    "fchmod",
    "chmod",
    "mkdir",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "flock",
    "getdents64",
    "close",
    "stat",
    "newfstatat",
    "fstat",
    "lseek",
)
GROWS = ("openat", "write", "fsync", "mkdir", "link", "linkat")
# How often a process asks for memory is no two times the same.
MEMORY = ("brk", "mmap", "munmap", "mremap", "madvise", "futex")
MARK = "getppid"  # stands in the trace before and after the append, and nowhere else


def serve() -> None:
    """Fork an appending process for each line of stdin; print its pid, later its exit code.

    One process that has everything imported: a fork takes milliseconds, a start half a second.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    for line in sys.stdin:
        job = json.loads(line)
        children = []
        for _ in range(job["writers"]):
            child = os.fork()
            if child == 0:
                os._exit(act(Path(job["locks"]), does=job["does"], waits=job["waits"]))
            children.append(child)
        print(*children, flush=True)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(*codes, flush=True)


def act(locks: Path, *, does: str, waits: bool) -> int:
    """Append one epoch, or check; return the exit code. What went wrong is written beside the locks."""
    if waits:
        signal.sigwait({signal.SIGUSR1})
    message, code = "", 0
    os.getppid()
    ledger = Ledger(locks, IMAGE, timeout_s=30)
    try:
        if does == "check":
            ledger.check_writable()
        else:
            ledger.append_epoch(sample_epoch)
    except ReproImageError as error:
        message, code = str(error), error.exit_code
    except BaseException as error:  # the test shows it
        message, code = repr(error), 1
    os.getppid()
    if message:
        (locks.parent / f"message-{os.getpid()}").write_text(message)
    return code


@dataclass
class Server:
    process: "subprocess.Popen[str]"

    def start(self, locks: Path, *, writers: int = 1, waits: bool = False, does: str = "append") -> list[int]:
        """Return the pids."""
        assert self.process.stdin is not None
        job = {"locks": str(locks), "writers": writers, "waits": waits, "does": does}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self._numbers()

    def codes(self) -> list[int]:
        return self._numbers()

    def _numbers(self) -> list[int]:
        assert self.process.stdout is not None
        return [int(word) for word in self.process.stdout.readline().split()]

    def act_under(self, locks: Path, *options: str, log: Path, does: str = "append") -> tuple[int, str]:
        """Act under strace with ``options``; return exit code (negative: signal) and the message."""
        [child] = self.start(locks, waits=True, does=does)
        strace = shutil.which("strace")
        assert strace, "strace is needed: apt-get install strace"
        command = [strace, "-p", str(child), "-o", str(log), *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            first = tracer.stderr.readline()
            os.kill(child, signal.SIGUSR1)
            assert "attached" in first, first
            [code] = self.codes()
        message = locks.parent / f"message-{child}"
        return code, message.read_text() if message.exists() else ""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    code = "from tests.integration.test_ledger_faults import serve; serve()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        yield Server(process)


def calls_of_one_append(server: Server, locks: Path, log: Path) -> list[tuple[str, int]]:
    """Return each system call of an append: its name, and which one of that name it is."""
    code, message = server.act_under(locks, log=log)
    assert code == 0, message
    counts: Counter[str] = Counter()
    calls, marks = [], 0
    for line in log.read_text().splitlines():
        match = re.match(r"([a-z0-9_]+)\(", line)
        if match is None:
            continue
        counts[match[1]] += 1
        marks += match[1] == MARK
        if marks == 1 and match[1] not in (MARK, *MEMORY):
            calls.append((match[1], counts[match[1]]))
    assert marks == 2
    return calls


def lay_out(folder: Path, epochs: int) -> Path:
    locks = folder / "locks" / IMAGE
    for _ in range(epochs):
        Ledger(locks, IMAGE).append_epoch(sample_epoch)
    return locks


def assert_old_or_new(locks: Path, before: dict[str, bytes], epochs: int, *, told: str) -> int:
    """Prove that nothing was lost, nothing is half, and the next append works. Return how many were there."""
    ledger = Ledger(locks, IMAGE, timeout_s=1)
    found = len(ledger.read())
    assert found in (epochs, epochs + 1), told
    assert before.items() <= contents(locks).items(), told
    assert ledger.append_epoch(sample_epoch).epoch.number == found + 1, told
    assert len(ledger.read()) == found + 1, told
    assert not list((locks / "epochs").glob(".new-*")), told
    return found


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_kill_at_any_system_call_leaves_the_old_or_the_new_ledger(
    server: Server, tmp_path: Path, epochs: int
) -> None:
    calls = calls_of_one_append(server, lay_out(tmp_path / "dry", epochs), tmp_path / "log")
    assert {"fsync", "flock", "link"} <= {name.removesuffix("at") for name, _ in calls}
    outcomes = []
    for step, (name, nth) in enumerate(calls):
        locks = lay_out(tmp_path / str(step), epochs)
        before, told = contents(locks), f"killed at {name} {nth}"
        code, _ = server.act_under(
            locks, "-e", f"inject={name}:signal=KILL:when={nth}", "-e", f"trace={name}", log=tmp_path / "log"
        )
        assert code == -signal.SIGKILL, told
        outcomes.append(assert_old_or_new(locks, before, epochs, told=told))
    assert outcomes == sorted(outcomes), "once the epoch is there it stays"
    assert {epochs, epochs + 1} == set(outcomes)


@pytest.mark.parametrize(("error", "names"), [("EIO", DISK), ("ENOSPC", GROWS), ("EROFS", GROWS)])
def test_a_failing_disk_at_any_system_call_is_told_and_loses_nothing(
    server: Server, tmp_path: Path, error: str, names: tuple[str, ...]
) -> None:
    calls = calls_of_one_append(server, lay_out(tmp_path / "dry", 1), tmp_path / "log")
    codes = set()
    for step, (name, nth) in enumerate(calls):
        if name not in names:
            continue
        locks = lay_out(tmp_path / str(step), 1)
        before, told = contents(locks), f"{error} at {name} {nth}"
        code, message = server.act_under(
            locks,
            "-e",
            f"inject={name}:error={error}:when={nth}",
            "-e",
            f"trace={name}",
            log=tmp_path / "log",
        )
        codes.add(code)
        assert code in (0, 5), f"{told}: {message}"
        found = assert_old_or_new(locks, before, 1, told=told)
        if code == 0:
            assert found == 2, told
        else:
            assert f"locks/{IMAGE}/epochs" in message, told
            assert found == 1 or "the outcome is unknown: run `repro-image epochs check`" in message, told
        if code == 5 and error == "ENOSPC":
            assert "the disk is full" in message, told
    assert 5 in codes


def test_a_full_disk_says_how_many_bytes_are_needed(server: Server, tmp_path: Path) -> None:
    locks = lay_out(tmp_path, 1)
    code, message = server.act_under(locks, "-e", "inject=write:error=ENOSPC:when=1", log=tmp_path / "log")
    assert code == 5
    assert re.search(r"the disk is full; nothing was written; [0-9],[0-9]{3} bytes are needed", message)
    assert f"where: locks/{IMAGE}/epochs/0002/epoch.json" in message


def test_a_write_that_ends_half_way_leaves_no_half_record(tmp_path: Path) -> None:
    locks = lay_out(tmp_path, 1)
    before, limits = contents(locks), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1000, limits[1])
    )  # the kernel writes 1,000 bytes, then refuses
    try:
        with pytest.raises(LedgerDiskError, match="File too large; nothing was written"):
            Ledger(locks, IMAGE).append_epoch(sample_epoch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_old_or_new(locks, before, 1, told="short write")


def test_the_record_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_reply(
    server: Server, tmp_path: Path
) -> None:
    locks = lay_out(tmp_path, 1)
    code, _ = server.act_under(locks, "-y", "-z", "-e", "trace=fsync,link,linkat,mkdir", log=tmp_path / "log")
    assert code == 0
    lines = (tmp_path / "log").read_text().splitlines()
    steps = [re.sub(r"\(.*?([^/>\"]*)[>\"].*", r" \1", line) for line in lines if "exited" not in line]
    names = [step.split()[0].removesuffix("at") for step in steps]
    assert names == ["fsync", "mkdir", "fsync", "link", "fsync"]
    assert steps[0].startswith("fsync .new-")
    assert [step.split()[1] for step in steps if step.startswith("fsync")][1:] == ["epochs", "0002"]


def test_sixty_writers_at_once_all_land_with_numbers_of_their_own(server: Server, tmp_path: Path) -> None:
    locks = tmp_path / "locks" / IMAGE
    start = time.monotonic()
    server.start(locks, writers=60)
    codes = server.codes()
    messages = [path.read_text() for path in locks.parent.glob("message-*")]
    assert codes == [0] * 60, messages
    assert [stored.epoch.number for stored in Ledger(locks, IMAGE).read()] == list(range(1, 61))
    assert time.monotonic() - start < 30


def test_a_writer_that_died_holding_the_lock_holds_up_nobody(server: Server, tmp_path: Path) -> None:
    locks = lay_out(tmp_path, 1)
    code, _ = server.act_under(locks, "-e", "inject=link:signal=KILL", log=tmp_path / "log")
    assert code == -signal.SIGKILL
    start = time.monotonic()
    assert Ledger(locks, IMAGE, timeout_s=5).append_epoch(sample_epoch).epoch.number == 2
    assert time.monotonic() - start < 1


def test_a_stopped_writer_is_named_to_those_who_wait(server: Server, tmp_path: Path) -> None:
    locks = lay_out(tmp_path, 1)
    [child] = server.start(locks, waits=True)
    strace = shutil.which("strace")
    assert strace
    command = [strace, "-p", str(child), "-o", str(tmp_path / "log"), "-e", "inject=link:delay_enter=800000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        tracer.stderr.readline()
        os.kill(child, signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while not (locks / "epochs/0002").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(LedgerBusyError, match=f"process {child} on "):
            Ledger(locks, IMAGE, timeout_s=0.1).append_epoch(sample_epoch)
        assert server.codes() == [0]
    assert len(Ledger(locks, IMAGE).read()) == 2


def test_a_read_only_file_system_is_told_before_any_work(server: Server, tmp_path: Path) -> None:
    locks = lay_out(tmp_path, 1)
    before = contents(locks)
    options = ("-e", "inject=openat:error=EROFS:when=1")
    code, message = server.act_under(locks, *options, log=tmp_path / "log", does="check")
    assert code == 5
    assert "the folder cannot be written: Read-only file system" in message
    assert "nothing was started" in message
    assert contents(locks) == before
