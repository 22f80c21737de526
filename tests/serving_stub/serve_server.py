"""Stands in for vLLM's server: answers over the socket what a formula says, so that containers, client and
judgement can be tried without a model. The word in the environment variable STUB makes it misbehave.
"""

import json
import os
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

MODE = os.environ.get("STUB", "")
TOP_K = 5
open_requests = 0


def completion(asked: dict[str, Any], *, beside: int) -> dict[str, Any]:
    """The k-th token is the first prompt id plus k; beside others each log-probability moves a little."""
    ids = [asked["prompt"][0] + k for k in range(asked["max_tokens"])]
    nudge = 2**-20 if MODE == "batched" and beside else 0.0
    odds = [{f"token_id:{i + j}": -(1 + j) / 8 - nudge for j in range(TOP_K)} for i in ids]
    chosen = [-1 / 8 - nudge] * len(ids)
    logprobs = {"text_offset": [], "tokens": [], "token_logprobs": chosen, "top_logprobs": odds}
    choice = {
        "index": 0,
        "text": "",
        "finish_reason": "length",
        "token_ids": ids,
        "prompt_token_ids": asked["prompt"],
        "logprobs": logprobs if asked.get("logprobs") else None,
    }
    return {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({})

    def do_POST(self) -> None:
        global open_requests
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self.answer({"tokens": [len(word) for word in asked["prompt"].split()]})
        if MODE == "dies":
            print("out of memory, says the stub", file=sys.stderr, flush=True)
            os._exit(3)
        open_requests += 1
        time.sleep(600 if MODE == "hangs" else 0.05)
        beside, open_requests = open_requests - 1, open_requests - 1
        return self.answer(completion(asked, beside=beside))

    def answer(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass

    def address_string(self) -> str:
        return "client"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    if MODE == "ends at once":
        sys.exit("unrecognised arguments: --no-such-flag")
    if MODE == "never listens":
        time.sleep(600)
    path = next(part.partition("=")[2] for part in sys.argv if part.startswith("--uds="))
    Server(path, Handler).serve_forever()
