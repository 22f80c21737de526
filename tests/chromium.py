"""A headless Chromium, driven through its DevTools pipe with the standard library alone."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "google-chrome", "chromium-browser")
_PRIVATE = (
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_WAIT_S = 60


class Page:
    """One file in one tab.

    requests: every address that it asked for; blocked: why some of these never left.
    messages: what the console was told.
    """

    def __init__(self, browser: "Chromium", file: Path, *, width: int, height: int, scheme: str) -> None:
        self._browser = browser
        self.requests, self.blocked, self.messages = list[str](), list[str](), list[str]()
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._target = target
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.call("Network.emulateNetworkConditions", **offline)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=file.as_uri())
        browser.wait("Page.loadEventFired", self._session, seen=self._see)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        return self._browser.call(method, session=self._session, seen=self._see, **parameters)

    def value(self, script: str) -> Any:
        """Return what ``script`` evaluates to. The page's own policy does not hold the DevTools back."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """Keep the whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)

    def _see(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event.get("method") == "Network.loadingFailed":
            self.blocked.append(parameters.get("blockedReason", ""))
        elif event.get("method") == "Log.entryAdded":
            self.messages.append(parameters["entry"]["text"])
        elif event.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.messages.append(json.dumps(parameters))


class Chromium:
    """The browser's side of the pipe: JSON messages, each ended by a NUL."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._rest, self._number = to_browser, from_browser, b"", 0

    @contextmanager
    def page(self, file: Path, *, width: int, height: int, scheme: str = "light") -> Iterator[Page]:
        page = Page(self, file, width=width, height=height, scheme=scheme)
        yield page
        page.close()

    def call(
        self, method: str, *, session: str = "", seen: Any = None, **parameters: object
    ) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result
            if seen:
                seen(answer)

    def wait(self, method: str, session: str, *, seen: Any) -> None:
        while True:
            event = self._read()
            seen(event)
            if event.get("method") == method and event.get("sessionId") == session:
                return

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._from, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded


def program() -> str | None:
    """Return the browser of this machine, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """Run the browser with an empty ``profile`` and no name server; as root without its sandbox."""
    name = program()
    assert name, f"none of {', '.join(NAMES)} is on PATH: .ci/setup installs one"
    (to_browser, its_in), (from_browser, its_out) = os.pipe()[::-1], os.pipe()
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [
        *("bash", "-c", f'exec "$@" 3<&{its_in} 4>&{its_out}', "bash"),
        *(name, "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
        *(*_PRIVATE, *sandbox, "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND"),
        f"--user-data-dir={profile}",
    ]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, pass_fds=(its_in, its_out), stdout=quiet, stderr=quiet) as process:
        os.close(its_in)
        os.close(its_out)
        browser = Chromium(to_browser, from_browser)
        try:
            yield browser
            browser.call("Browser.close")
        finally:
            os.close(to_browser)
            os.close(from_browser)
            try:
                process.wait(_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
