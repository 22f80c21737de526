"""A real HTTP server on this machine that can be told to misbehave."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """answers: path -> what to do with each request in turn; the last one stays. requests: what came in.

    default: what to do with requests for other paths.
    """

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self.answers: dict[str, list[Answer]] = {}
        self.default: Answer = status(404)
        self.requests: list[tuple[str, dict[str, str]]] = []

    def url(self, path: str) -> str:
        return f"{self.base}{path}"

    def headers(self, name: str) -> list[str | None]:
        """Return one header of every request so far, in lower case's spelling."""
        return [headers.get(name.lower()) for _, headers in self.requests]


@contextmanager
def serving() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {key.lower(): value for key, value in self.headers.items()}
            server.requests.append((self.path, headers))
            answers = server.answers.get(self.path, [server.default])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            try:
                answer(self)
            except (BrokenPipeError, ConnectionResetError):  # the client has had enough, as it should
                self.close_connection = True

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET()

        do_HEAD = do_GET  # noqa: N815 - the base class's name
        do_POST = do_PUT  # noqa: N815 - the base class's name

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    class QuietServer(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing of clients that hang up: some tests want just that."""

    http = QuietServer(("127.0.0.1", 0), Handler)
    server = Server(http.server_address[1])
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def status(code: int, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for key, value in headers.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def whole(data: bytes, *, content_type: str = "application/octet-stream") -> Answer:
    """Answer with all of it, whatever part was asked for."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(data)

    return answer


def ranged(data: bytes, *, shift: int = 0, total: int | None = None) -> Answer:
    """Answer with the part that was asked for, or with one ``shift`` bytes further on."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        wish = handler.headers.get("Range")
        if wish is None:
            whole(data)(handler)
            return
        first = int(wish.removeprefix("bytes=").rstrip("-")) + shift
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{total or len(data)}")
        handler.send_header("Content-Length", str(len(data) - first))
        handler.end_headers()
        handler.wfile.write(data[first:])

    return answer


def cut(data: bytes, count: int) -> Answer:
    """Promise all of it, send the first ``count`` bytes and hang up."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:count])
        handler.wfile.flush()
        handler.close_connection = True

    return answer


def endless() -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()  # no length: the body ends when the connection does
        while True:
            handler.wfile.write(b"x" * 65536)

    return answer


def stalled(data: bytes, count: int, until: threading.Event) -> Answer:
    """Send the first ``count`` bytes, then nothing more."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:count])
        handler.wfile.flush()
        until.wait(30)
        handler.close_connection = True

    return answer


def trickling(data: bytes, until: threading.Event) -> Answer:
    """Send one byte now and then, often enough that no read times out."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for byte in data:
            if until.wait(0.05):
                return
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()

    return answer
