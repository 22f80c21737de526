import base64
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from repro_image.adapters.downloads import Wanted, download
from repro_image.adapters.pip_settings import PipSettings
from repro_image.adapters.store import Store
from repro_image.adapters.web import Limits, Web
from repro_image.core.reference import sha256_digest
from repro_image.errors import DiskFullError, DownloadError, GoneError, WrongContentError
from tests.unit.web_server import (
    Server,
    cut,
    endless,
    ranged,
    serving,
    stalled,
    status,
    trickling,
    whole,
)

DATA = bytes(range(256)) * 1000
DIGEST = sha256_digest(DATA)
LIMITS = Limits(attempts=3, first_wait_s=0.01, longest_wait_s=0.2)
SETTINGS = PipSettings(timeout_s=0.5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def web() -> Web:
    return Web(SETTINGS, limits=LIMITS)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Set at the end, so that no answer outlives its test."""
    event = threading.Event()
    yield event
    event.set()


def get(store: Store, web: Web, *sources: str, data: bytes = DATA, name: str = "thing 1.0") -> int:
    """Download one file; return how many bytes were reported."""
    counts: list[int] = []
    wanted = Wanted(name=name, digest=sha256_digest(data), size_bytes=len(data), find=lambda: sources)
    download([wanted], store=store, web=web, on_bytes=counts.append)
    return sum(counts)


def leftovers(store: Store) -> list[Path]:
    return [
        path
        for path in store.root.rglob("*")
        if path.is_file() and path.name != ".lock" and path.stat().st_size
    ]


def put_partial(store: Store, data: bytes) -> None:
    store.partial(DIGEST).write_bytes(data)


def test_a_file_is_downloaded_under_its_digest(store: Store, web: Web, server: Server) -> None:
    server.answers["/f"] = [whole(DATA)]
    assert get(store, web, server.url("/f")) == len(DATA)
    assert store.path(DIGEST).read_bytes() == DATA
    assert leftovers(store) == [store.path(DIGEST)]


def test_what_is_in_the_store_is_not_asked_for(store: Store, web: Web, server: Server) -> None:
    server.answers["/f"] = [whole(DATA)]
    get(store, web, server.url("/f"))
    get(store, web, server.url("/f"))
    assert len(server.requests) == 1


def test_a_cut_download_is_continued_where_it_stopped(store: Store, web: Web, server: Server) -> None:
    server.answers["/f"] = [cut(DATA, 100_000), ranged(DATA)]
    assert get(store, web, server.url("/f")) == len(DATA)
    assert server.headers("Range") == [None, "bytes=100000-"]
    store.verify(DIGEST)


def test_a_partial_file_of_an_earlier_run_is_continued(store: Store, web: Web, server: Server) -> None:
    put_partial(store, DATA[:200_000])
    server.answers["/f"] = [ranged(DATA)]
    assert get(store, web, server.url("/f")) == len(DATA)
    assert server.headers("Range") == ["bytes=200000-"]
    store.verify(DIGEST)
    assert not store.partial(DIGEST).exists()


def test_a_corrupt_partial_file_costs_one_more_download(store: Store, web: Web, server: Server) -> None:
    put_partial(store, b"x" * 1000)
    server.answers["/f"] = [ranged(DATA)]
    assert get(store, web, server.url("/f")) == len(DATA)
    assert server.headers("Range") == ["bytes=1000-", None]
    store.verify(DIGEST)


def test_a_partial_file_that_is_too_long_is_dropped(store: Store, web: Web, server: Server) -> None:
    put_partial(store, DATA + b"more")
    server.answers["/f"] = [whole(DATA)]
    assert get(store, web, server.url("/f")) == len(DATA)
    store.verify(DIGEST)


def test_a_server_without_range_sends_all_of_it_again(store: Store, web: Web, server: Server) -> None:
    put_partial(store, DATA[:5000])
    server.answers["/f"] = [whole(DATA)]
    assert get(store, web, server.url("/f")) == len(DATA)
    store.verify(DIGEST)


def test_a_server_that_cannot_resume_is_asked_for_the_whole_file(
    store: Store, web: Web, server: Server
) -> None:
    put_partial(store, DATA[:5000])
    server.answers["/f"] = [status(416), whole(DATA)]
    assert get(store, web, server.url("/f")) == len(DATA)


def test_a_part_from_the_wrong_offset_is_refused(store: Store, web: Web, server: Server) -> None:
    put_partial(store, DATA[:1000])
    server.answers["/f"] = [ranged(DATA, shift=7), whole(DATA)]
    get(store, web, server.url("/f"))
    store.verify(DIGEST)
    assert server.headers("Range") == ["bytes=1000-", None]


def test_a_part_that_nobody_asked_for_is_refused(store: Store, web: Web, server: Server) -> None:
    server.answers["/f"] = [status(206, Content_Range=f"bytes 5-{len(DATA) - 1}/{len(DATA)}")]
    with pytest.raises(DownloadError, match="the server sent another part than asked for"):
        get(store, web, server.url("/f"))
    assert leftovers(store) == []


def test_a_part_of_a_file_of_another_size_is_refused(store: Store, web: Web, server: Server) -> None:
    put_partial(store, DATA[:1000])
    server.answers["/f"] = [ranged(DATA, total=len(DATA) + 9), whole(DATA)]
    get(store, web, server.url("/f"))
    store.verify(DIGEST)


def test_a_file_with_another_hash_is_refused_with_both_hashes(store: Store, web: Web, server: Server) -> None:
    other = DATA[:-1] + b"!"
    server.answers["/f"] = [whole(other)]
    with pytest.raises(WrongContentError) as caught:
        get(store, web, server.url("/f"))
    assert str(caught.value) == (
        f"thing 1.0 is not the locked file: expected {DIGEST}, found {sha256_digest(other)}\n"
        f"  where: {server.url('/f')}\n"
        "  fix:   find out why it changed; lock again with `repro-image lock` only if the new file is to be"
        " trusted"
    )
    assert caught.value.exit_code == 5
    assert leftovers(store) == []


def test_a_longer_file_is_refused_before_its_body_is_read(store: Store, web: Web, server: Server) -> None:
    server.answers["/f"] = [whole(DATA + b"more")]
    with pytest.raises(WrongContentError, match="expected 256,000 bytes, found 256,004 bytes"):
        get(store, web, server.url("/f"))
    assert leftovers(store) == []


def test_an_endless_body_is_cut_at_the_locked_size(store: Store, web: Web, server: Server) -> None:
    server.answers["/f"] = [endless()]
    with pytest.raises(WrongContentError, match="found a longer body"):
        get(store, web, server.url("/f"))
    assert leftovers(store) == []


def test_a_file_that_always_ends_early_is_given_up_and_kept_for_later(
    store: Store, web: Web, server: Server
) -> None:
    server.answers["/f"] = [cut(DATA, 1000)]
    with pytest.raises(DownloadError, match="the connection ended early, 4 times") as caught:
        get(store, web, server.url("/f"))
    assert caught.value.exit_code == 5
    assert store.partial(DIGEST).stat().st_size == 1000
    assert not store.path(DIGEST).exists()


def test_a_stalled_server_is_left_and_the_file_resumed(
    store: Store, web: Web, server: Server, released: threading.Event
) -> None:
    server.answers["/f"] = [stalled(DATA, 50_000, released), ranged(DATA)]
    began = time.monotonic()
    get(store, web, server.url("/f"))
    assert time.monotonic() - began < 5
    assert server.headers("Range") == [None, "bytes=50000-"]
    store.verify(DIGEST)


def test_a_server_that_sends_a_byte_now_and_then_counts_as_stalled(
    store: Store, web: Web, server: Server, released: threading.Event
) -> None:
    server.answers["/f"] = [trickling(DATA, released), ranged(DATA)]
    began = time.monotonic()
    get(store, web, server.url("/f"))
    assert time.monotonic() - began < 5
    store.verify(DIGEST)


@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_server_is_asked_again_after_the_time_it_names(
    store: Store, web: Web, server: Server, code: int
) -> None:
    server.answers["/f"] = [status(code, Retry_After="1"), whole(DATA)]
    began = time.monotonic()
    get(store, web, server.url("/f"))
    assert time.monotonic() - began >= LIMITS.longest_wait_s  # the wait is bounded by the limit
    store.verify(DIGEST)


def test_a_server_that_stays_busy_is_given_up_with_count(store: Store, web: Web, server: Server) -> None:
    server.answers["/f"] = [status(503, Retry_After="3600")]
    with pytest.raises(DownloadError, match="the server answers 503, 3 times") as caught:
        get(store, web, server.url("/f"))
    assert caught.value.exit_code == 5
    assert len(server.requests) == LIMITS.attempts


@pytest.mark.parametrize(
    ("code", "told"),
    [(401, "asks for credentials"), (403, "refuses access"), (404, "does not have it"), (418, "answers 418")],
)
def test_each_refusal_has_its_own_message_and_is_not_repeated(
    store: Store, web: Web, server: Server, code: int, told: str
) -> None:
    server.answers["/f"] = [status(code)]
    with pytest.raises(DownloadError, match=told):
        get(store, web, server.url("/f"))
    assert len(server.requests) == 1


def test_the_next_source_is_asked_when_one_lost_the_file(store: Store, web: Web, server: Server) -> None:
    server.answers["/new"] = [whole(DATA)]
    get(store, web, server.url("/old"), server.url("/new"))
    store.verify(DIGEST)


def test_a_file_that_is_gone_everywhere_is_an_error_of_its_own(
    store: Store, web: Web, server: Server
) -> None:
    with pytest.raises(GoneError):
        get(store, web, server.url("/a"), server.url("/b"))


def test_a_redirect_on_the_same_host_is_followed_with_credentials(
    store: Store, web: Web, server: Server
) -> None:
    server.answers["/f"] = [status(302, Location="/g")]
    server.answers["/g"] = [whole(DATA)]
    get(store, web, server.url("/f").replace("http://", "http://me:secret@"))
    basic = "Basic " + base64.b64encode(b"me:secret").decode()
    assert server.headers("Authorization") == [basic, basic]


def test_credentials_do_not_follow_a_redirect_to_another_host(store: Store, web: Web, server: Server) -> None:
    with serving() as other:
        server.answers["/f"] = [status(302, Location=other.url("/g"))]
        other.answers["/g"] = [whole(DATA)]
        get(store, web, server.url("/f").replace("http://", "http://me:secret@"))
        assert server.headers("Authorization") != [None]
        assert other.headers("Authorization") == [None]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirect_to_no_web_address_is_refused(store: Store, web: Web, server: Server, target: str) -> None:
    server.answers["/f"] = [status(302, Location=target)]
    with pytest.raises(DownloadError, match="which is refused"):
        get(store, web, server.url("/f"))


def test_a_redirect_from_https_to_http_is_refused(web: Web) -> None:
    with pytest.raises(DownloadError, match="from https to http"):
        web.check_redirect("https://files.example/f", "http://files.example/f", name="f")


def test_a_redirect_from_a_public_server_into_this_network_is_refused(web: Web) -> None:
    for private in ("127.0.0.1", "10.0.0.8", "169.254.169.254", "[::1]"):
        with pytest.raises(DownloadError, match="to a private address"):
            web.check_redirect("https://8.8.8.8/f", f"https://{private}/f", name="f")
    web.check_redirect("http://127.0.0.1/f", "http://10.0.0.8/f", name="f")


def test_a_ring_of_redirects_ends(store: Store, web: Web, server: Server) -> None:
    server.answers["/f"] = [status(302, Location="/f")]
    with pytest.raises(DownloadError, match="too many redirects"):
        get(store, web, server.url("/f"))


def test_credentials_are_in_no_message(store: Store, web: Web, server: Server) -> None:
    with pytest.raises(DownloadError) as caught:
        get(store, web, server.url("/f?token=hidden").replace("http://", "http://me:secret@"))
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_an_unknown_server_is_named(store: Store, web: Web) -> None:
    with pytest.raises(DownloadError, match=r"the name of the server nowhere\.invalid is not known, 3 times"):
        get(store, web, "http://nowhere.invalid/f")


def test_a_refused_connection_is_named(store: Store, web: Web) -> None:
    with pytest.raises(DownloadError, match="the connection failed"):
        get(store, web, "http://127.0.0.1:9/f")


def test_a_broken_proxy_is_named(store: Store) -> None:
    settings = msgspec.structs.replace(SETTINGS, proxies={"http_proxy": "http://me:secret@127.0.0.1:9"})
    with pytest.raises(DownloadError, match=r"the proxy failed|the connection failed") as caught:
        get(store, Web(settings, limits=LIMITS), "http://files.example/f")
    assert "secret" not in str(caught.value)


def test_a_host_in_no_proxy_is_asked_directly(store: Store, server: Server) -> None:
    proxies = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "localhost, 127.0.0.1"}
    server.answers["/f"] = [whole(DATA)]
    get(store, Web(msgspec.structs.replace(SETTINGS, proxies=proxies), limits=LIMITS), server.url("/f"))
    store.verify(DIGEST)


def test_tls_errors_are_not_repeated(store: Store, web: Web, server: Server) -> None:
    with pytest.raises(DownloadError, match="certificate is not accepted") as caught:
        get(store, web, server.url("/f").replace("http://", "https://"))
    assert "check the machine's clock and certificates" in caught.value.fix


def test_a_local_file_is_copied_and_hashed(store: Store, web: Web, tmp_path: Path) -> None:
    source = tmp_path / "f.whl"
    source.write_bytes(DATA)
    assert get(store, web, source.as_uri()) == len(DATA)
    assert not store.path(DIGEST).samefile(source)


def test_a_local_file_with_another_hash_is_refused(store: Store, web: Web, tmp_path: Path) -> None:
    (tmp_path / "f.whl").write_bytes(b"other")
    with pytest.raises(WrongContentError, match="is not the locked file"):
        get(store, web, str(tmp_path / "f.whl"))


def test_more_than_the_disk_can_hold_is_not_begun(
    store: Store, web: Web, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "free_bytes", lambda self: 1000)
    with pytest.raises(DiskFullError, match="256,000 bytes needed, 1,000 bytes free"):
        get(store, web, server.url("/f"))
    assert server.requests == []


def test_a_disk_that_fills_up_on_the_way_is_named(
    store: Store, web: Web, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Store, file: Path, digest: str) -> None:
        from repro_image.adapters.store import disk_errors

        with disk_errors(file, needed_bytes=len(DATA)):
            raise OSError(errno.ENOSPC, "No space left on device")

    server.answers["/f"] = [whole(DATA)]
    monkeypatch.setattr(Store, "adopt", full)
    with pytest.raises(DiskFullError, match="256,000 bytes needed"):
        get(store, web, server.url("/f"))
    assert not store.path(DIGEST).exists()


def test_several_files_come_at_a_time(store: Store, web: Web, server: Server) -> None:
    together = threading.Barrier(4, timeout=10)
    files = {f"/{n}": DATA + bytes([n]) for n in range(4)}
    for path, data in files.items():
        server.answers[path] = [lambda handler, data=data: (together.wait(), whole(data)(handler))[1]]  # type: ignore[misc]
    wanted = [
        Wanted(
            name=path,
            digest=sha256_digest(data),
            size_bytes=len(data),
            find=lambda path=path: [server.url(path)],  # type: ignore[misc]
        )
        for path, data in files.items()
    ]
    download(wanted, store=store, web=web, on_bytes=lambda count: None, threads=4)
    for file in wanted:
        store.verify(file.digest)


def test_the_first_error_ends_the_download(
    store: Store, web: Web, server: Server, released: threading.Event
) -> None:
    server.answers["/slow"] = [stalled(DATA, 10, released)]
    slow = Wanted(name="slow", digest=DIGEST, size_bytes=len(DATA), find=lambda: [server.url("/slow")])
    gone = Wanted(name="gone", digest=sha256_digest(b"x"), size_bytes=1, find=lambda: [server.url("/gone")])
    with pytest.raises(GoneError, match="gone"):
        download([slow, gone], store=store, web=web, on_bytes=lambda count: None)


def get_once(root: Path, url: str) -> None:
    get(Store(root), Web(SETTINGS, limits=LIMITS), url)


def test_two_processes_bring_one_file_once(store: Store, server: Server) -> None:
    server.answers["/f"] = [whole(DATA)]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=get_once, args=(store.root, server.url("/f"))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    store.verify(DIGEST)
    assert len(server.requests) == 1


DOWNLOAD = """
import sys, pathlib
from tests.unit.test_downloads import DATA, get
from repro_image.adapters.pip_settings import PipSettings
from repro_image.adapters.store import Store
from repro_image.adapters.web import Web
print("begun", flush=True)
get(Store(pathlib.Path(sys.argv[1])), Web(PipSettings(timeout_s=60)), sys.argv[2])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_ended_client_leaves_no_half_file_and_the_next_run_resumes(
    store: Store, web: Web, server: Server, released: threading.Event, number: signal.Signals
) -> None:
    server.answers["/f"] = [stalled(DATA, 50_000, released), ranged(DATA)]
    command = [sys.executable, "-c", DOWNLOAD, str(store.root), server.url("/f")]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root) as client:
        assert client.stdout is not None
        client.stdout.readline()
        deadline = time.monotonic() + 20
        while not (store.partial(DIGEST).exists() and store.partial(DIGEST).stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(client.pid, number)
        began = time.monotonic()
        client.wait(timeout=10)
    assert time.monotonic() - began < 5
    assert not store.path(DIGEST).exists()
    get(store, web, server.url("/f"))
    store.verify(DIGEST)
    assert leftovers(store) == [store.path(DIGEST)]
