"""Asks vLLM's OpenAI server golden prompts while other requests arrive. Runs inside the image under test and
imports only what that image holds.

usage: python serve_client.py REQUEST.json SOCKET MODEL_NAME ANSWER.json

Reads ServeInput and writes ServeOutput (repro_image/core/serving.py has both forms), in one step at the end.
Standard error carries progress on lines of its own, such as {"phase": "2 streams", "done": 3, "total": 8}.
Exits with 0, or with 1 and a last line that says what failed.
"""

import asyncio
import base64
import json
import os
import sys
import time
from array import array
from pathlib import Path
from typing import Any

_WAIT_S = 0.2


class InFlight:
    """How many background requests are open, and their mean number over time."""

    def __init__(self) -> None:
        self.now, self.answered, self._area = 0, 0, 0.0
        self._begin = self._last = time.monotonic()

    def start(self) -> None:
        """Begin to count; what came before was the time until the load was there."""
        self._begin = self._last = time.monotonic()
        self.answered, self._area = 0, 0.0

    def change(self, by: int) -> None:
        moment = time.monotonic()
        self._area += self.now * (moment - self._last)
        self._last, self.now = moment, self.now + by

    @property
    def mean(self) -> float:
        self.change(0)
        return self._area / max(self._last - self._begin, 1e-9)


class Client:
    """One run: every load of the request, one after another."""

    def __init__(self, asked: dict[str, Any], socket: str, model: str) -> None:
        import httpx
        import openai

        self.asked, self.model = asked, model
        self.top_k: int = asked["request"]["top_k"]
        self.phase = "server start"
        self.http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket),
            base_url="http://server",
            timeout=asked["request_s"],
            limits=httpx.Limits(max_connections=None),
        )
        self.openai = openai.AsyncOpenAI(
            base_url="http://server/v1", api_key="none", http_client=self.http, max_retries=0
        )

    async def run(self) -> dict[str, Any]:
        """Return the ServeOutput as plain values."""
        await self.wait_for_server()
        loads = [await self.load(streams) for streams in self.asked["loads"]]
        return {"format": 1, "nonce": self.asked["nonce"], "loads": loads}

    async def wait_for_server(self) -> None:
        from httpx import TransportError

        progress(self.phase, 0, 1)
        deadline = time.monotonic() + self.asked["start_s"]
        while time.monotonic() < deadline:
            try:
                if (await self.http.get("/health")).status_code == 200:
                    return progress(self.phase, 1, 1)
            except TransportError:
                pass
            await asyncio.sleep(_WAIT_S)
        raise TimeoutError(f"the server did not answer within {self.asked['start_s']} s")

    async def load(self, streams: int) -> dict[str, Any]:
        """Ask every golden prompt, one after another, beside ``streams`` streams of other requests."""
        self.phase = f"{streams} streams"
        lanes = self.asked["request"]["lanes"]
        total = sum(len(lane["prompts"]) for lane in lanes)
        in_flight = InFlight()
        completions: list[dict[str, Any]] = []
        progress(self.phase, 0, total)
        started = [asyncio.Event() for _ in range(streams)]
        arrivals = self.asked["background"][:streams]
        tasks = [
            asyncio.create_task(self.stream(requests, in_flight, event))
            for requests, event in zip(arrivals, started, strict=True)
        ]
        golden = asyncio.create_task(self.golden(lanes, started, in_flight, completions, total))
        begin = time.monotonic()
        try:
            # A stream ends only by an error, which must not pass for a quiet server.
            done, _ = await asyncio.wait([golden, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (golden, *tasks):
                task.cancel()
            await asyncio.gather(golden, *tasks, return_exceptions=True)
        return {
            "streams": streams,
            "completions": completions,
            "requests": in_flight.answered,
            "in_flight": round(in_flight.mean, 3),
            "seconds": round(time.monotonic() - begin, 3),
        }

    async def golden(
        self,
        lanes: list[dict[str, Any]],
        started: list[asyncio.Event],
        in_flight: InFlight,
        completions: list[dict[str, Any]],
        total: int,
    ) -> None:
        for event in started:  # from the first prompt on the load is there
            await event.wait()
        in_flight.start()
        for lane in lanes:
            for prompt in lane["prompts"]:
                completions.append(await self.ask(prompt, lane["name"]))
                progress(self.phase, len(completions), total)

    async def stream(
        self, requests: list[dict[str, Any]], in_flight: InFlight, started: asyncio.Event
    ) -> None:
        """Send the stream's requests at their times, each when the one before is answered, over and over."""
        due = time.monotonic()
        while True:
            for request in requests:
                due += request["gap_ms"] / 1000
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                in_flight.change(+1)
                started.set()
                try:
                    await self.complete(
                        request["prompt_ids"],
                        {"max_tokens": request["max_tokens"], "temperature": 1.0, "seed": request["seed"]},
                        top_k=0,
                    )
                finally:
                    in_flight.change(-1)
                in_flight.answered += 1
                due = max(due, time.monotonic() - 1)  # a machine that cannot keep up owes one second at most

    async def ask(self, prompt: dict[str, Any], lane: str) -> dict[str, Any]:
        """Return one golden prompt's Completion."""
        tokenized = await self.tokenize(prompt)
        choice = await self.complete(prompt["token_ids"], prompt["sampling"], top_k=self.top_k)
        if choice.prompt_token_ids != prompt["token_ids"]:
            raise RuntimeError(f"{prompt['id']}: the server read other token ids than it was sent")
        topk_ids, floats = [], []
        for chosen, logprob, entries in zip(
            choice.token_ids, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True
        ):
            odds = {int(name.removeprefix("token_id:")): value for name, value in entries.items()}
            top = _top(odds, chosen, self.top_k)
            if len(top) != self.top_k:
                raise RuntimeError(f"{prompt['id']}: {len(top)} alternatives for a token, not {self.top_k}")
            topk_ids += top
            floats += [logprob, *(odds[token] for token in top)]
        return {
            "id": prompt["id"],
            "lane": lane,
            "tokenized": _packed("i", tokenized),
            "prompt_ids": _packed("i", choice.prompt_token_ids),
            "output_ids": _packed("i", choice.token_ids),
            "topk_ids": _packed("i", topk_ids),
            "logprobs": _packed("f", floats),
            "finish_reason": choice.finish_reason,
        }

    async def complete(self, prompt_ids: list[int], sampling: dict[str, Any], *, top_k: int) -> Any:
        """Return the choice that answers one request, every sampling value given."""
        answer = await self.openai.completions.create(
            model=self.model,
            prompt=prompt_ids,
            n=1,
            max_tokens=sampling["max_tokens"],
            temperature=sampling["temperature"],
            top_p=sampling.get("top_p", 1.0),
            seed=sampling["seed"],
            logprobs=top_k or None,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            extra_body={
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "ignore_eos": True,
                "return_token_ids": True,
                "return_tokens_as_token_ids": True,
            },
        )
        return answer.choices[0]

    async def tokenize(self, prompt: dict[str, Any]) -> list[int]:
        """Return the ids of the prompt's text as the server tokenises it."""
        if prompt["text"] is None:
            return []
        answer = await self.http.post("/tokenize", json={"model": self.model, "prompt": prompt["text"]})
        answer.raise_for_status()
        tokens: list[int] = answer.json()["tokens"]
        return tokens


def progress(phase: str, done: int, total: int) -> None:
    os.write(2, f"\n{json.dumps({'phase': phase, 'done': done, 'total': total})}\n".encode())


def _top(odds: dict[int, float], chosen: int, top_k: int) -> list[int]:
    """Return the ``top_k`` most likely ids, ties by id; as golden_runner.py does it."""
    ids = [token for token in odds if len(odds) <= top_k or token != chosen]
    return sorted(ids, key=lambda token: (-odds[token], token))


def _packed(code: str, values: list[Any]) -> str:
    """Return little-endian int32 or float32 in base64. JSON's decimals hold a float32 exactly: vLLM writes
    the shortest text of the double that it is.
    """
    packed = array(code, values)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


def main(request: str, socket: str, model: str, output: str) -> int:
    client = None
    try:
        asked = json.loads(Path(request).read_bytes())
        client = Client(asked, socket, model)
        answer = asyncio.run(client.run())
        draft = Path(output).with_suffix(".draft")
        draft.write_text(json.dumps(answer), encoding="utf-8")
        draft.replace(output)
    except Exception as error:
        phase = client.phase if client else "request"
        reason = " ".join(str(error).split())[:2000]
        print(f"\nserving failed in phase {phase}: {type(error).__name__}: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
