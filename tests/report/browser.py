"""A headless browser, controlled through its debugging pipe: no package, no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60  # seconds for an answer, on a machine with much else to do


class Browser:
    """One page of Chromium. `messages` are the messages that came on the way, such as lines of the console."""

    def __init__(self, write: int, read: int):
        self._write, self._read = write, read
        self._number, self._buffer = 0, b""
        self.session = ""
        self.messages: list[dict[str, Any]] = []

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command of the DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.messages.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def wait_for(self, event: str) -> None:
        """Until the page says so."""
        while not any(message.get("method") == event for message in self.messages):
            self.messages.append(self._next())

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript in the page; promises are awaited."""
        answer = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            content = os.read(self._read, 1 << 20)
            assert content, "the browser has ended"
            self._buffer += content
        line, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(line))

    def open(self, page: Path, width: int, height: int, scheme: str) -> None:
        """Load a file in a window of that many pixels, for eyes that like it `light` or `dark`."""
        self.messages.clear()
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=page.absolute().as_uri())
        self.wait_for("Page.loadEventFired")

    def screenshot(self) -> bytes:
        """PNG of the whole page, also of what lies below the window."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"])


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile."""
    to_it, ours = os.pipe()
    theirs, from_it = os.pipe()[::-1]
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
               "--disable-background-networking", f"--user-data-dir={profile}", "--remote-debugging-pipe"]  # fmt: skip
    command = ["bash", "-c", f'exec "$@" 3<&{to_it} 4>&{theirs}', "bash", str(CHROMIUM), *options, "about:blank"]
    log = subprocess.DEVNULL
    process = subprocess.Popen(command, pass_fds=(to_it, theirs), stdout=log, stderr=log)
    os.close(to_it)
    os.close(theirs)
    try:
        found = Browser(ours, from_it)
        target = found.ask("Target.createTarget", url="about:blank")["targetId"]
        found.session = found.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            found.ask(f"{domain}.enable")
        yield found
    finally:
        process.terminate()
        process.wait(PATIENCE)
        os.close(ours)
        os.close(from_it)
