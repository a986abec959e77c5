"""A headless Chromium that is spoken to through pipes, by its own protocol and nothing else.

https://chromedevtools.github.io/devtools-protocol/: messages are JSON, each ended by a zero byte.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)
PATIENCE_SECONDS = 60.0


def executable() -> str | None:
    """Where Chromium is, by any of its names."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One browser with one page.

    Attributes:
        complaints: what pages wrote to the console, and what went wrong on them.
    """

    def __init__(self, chromium: str, profile: Path) -> None:
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        # It reads at 3 and writes at 4, which the pipes must not lie at themselves.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (read, write)]
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, end, 3 + i) for i, end in enumerate(ends)]
        actions += [(os.POSIX_SPAWN_OPEN, i, os.devnull, os.O_WRONLY, 0) for i in (1, 2)]
        command = [chromium, *FLAGS, f"--user-data-dir={profile}"]
        self._process = os.posix_spawn(chromium, command, os.environ, file_actions=actions)
        for end in (read, write, *ends):
            os.close(end)
        self._number, self._buffer = 0, b""
        self._events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self._session = ""
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._session = ""
            self.call("Browser.close")
        for end in (self._read, self._write):
            os.close(end)
        os.waitpid(self._process, 0)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something, and give the answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def show(self, page: Path, anchor: str = "", width: int = 1440, **media: str) -> None:
        """Open a page, as wide as asked for, with media features such as `prefers_color_scheme`."""
        self.complaints.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": n.replace("_", "-"), "value": v} for n, v in media.items()]
        self.call("Emulation.setEmulatedMedia", features=features)
        self._events.clear()
        self.call("Page.navigate", url="about:blank")
        self._await("Page.loadEventFired")
        self._events.clear()
        self.call("Page.navigate", url=page.as_uri() + (f"#{anchor}" if anchor else ""))
        self._await("Page.loadEventFired")

    def scripts(self, allowed: bool) -> None:
        """Whether pages may run scripts of theirs."""
        self.call("Emulation.setScriptExecutionDisabled", value=not allowed)

    def run(self, expression: str) -> Any:
        """What an expression gives on the page; a promise is waited for."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _await(self, method: str) -> None:
        while not any(event.get("method") == method for event in self._events):
            self._next()

    def _next(self) -> dict[str, Any]:
        limit = time.monotonic() + PATIENCE_SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(limit - time.monotonic(), 0))
            part = os.read(self._read, 1 << 16) if ready else b""
            if not part:
                raise OSError(
                    f"expected an answer of Chromium, got none; exit {self._process.poll()}"
                )
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        event = json.loads(message)
        if "method" in event:
            self._events.append(event)
            self._note(event)
        return event

    def _note(self, event: dict[str, Any]) -> None:
        said = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        elif event["method"] == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(said["args"]))
        elif event["method"] == "Log.entryAdded":
            self.complaints.append(said["entry"]["text"])
        elif event["method"] == "Network.requestWillBeSent":
            address = said["request"]["url"]
            if not address.startswith(("file:", "data:", "about:")):
                self.complaints.append(f"asked for {address}")
