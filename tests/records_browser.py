"""Headless Chromium driven over its debugging pipe (file descriptors 3 and 4).

It needs no driver program, no WebSocket library and no port.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)


class Browser:
    """One page.

    problems: console errors, uncaught exceptions, and failed or forbidden requests.
    requests: every URL asked for.
    """

    def __init__(self) -> None:
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        self.buffer = b""
        self.serial = 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        self.session: str | None = None
        self._start()
        self._attach()

    def _start(self) -> None:
        to_read, self.to_write = os.pipe()
        self.from_read, from_write = os.pipe()
        # Clear of 3 and 4, wherever pipe() put them.
        commands = fcntl.fcntl(to_read, fcntl.F_DUPFD_CLOEXEC, 64)
        answers = fcntl.fcntl(from_write, fcntl.F_DUPFD_CLOEXEC, 64)

        def place_descriptors() -> None:
            os.dup2(commands, 3)
            os.dup2(answers, 4)

        command = [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={self.profile}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=place_descriptors,
            # True would close 3 and 4 as well. Python's other descriptors are not inherited
            # anyway (PEP 446).
            close_fds=False,
        )
        for descriptor in (to_read, from_write, commands, answers):
            os.close(descriptor)

    def _attach(self) -> None:
        """Makes every later call speak to the first page, and turns its events on."""
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.to_write)
        self.process.terminate()
        self.process.wait(timeout=10)
        os.close(self.from_read)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer. Records events that arrive meanwhile.

        Raises RuntimeError on an error answer.
        """
        self.serial += 1
        message: dict[str, Any] = {"id": self.serial, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.serial:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self, timeout: float = 30.0) -> dict[str, Any]:
        """The next message. Raises TimeoutError after `timeout` seconds without a whole one."""
        deadline = time.monotonic() + timeout
        while b"\0" not in self.buffer:
            remaining = max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([self.from_read], [], [], remaining)
            if not readable:
                raise TimeoutError("Chromium did not answer")
            chunk = os.read(self.from_read, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium closed its pipe")
            self.buffer += chunk
        raw, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(raw)
        self._record(message.get("method"), message.get("params", {}))
        return message

    def _record(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            exception = details.get("exception", {})
            self.problems.append(exception.get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled":
            kind = params["type"]
            if kind in ("error", "warning", "assert"):
                values = [one.get("value", one.get("description")) for one in params["args"]]
                self.problems.append(f"console.{kind}: {values}")
        elif event == "Log.entryAdded":
            entry = params["entry"]
            if entry["level"] in ("error", "warning"):
                self.problems.append(f"log: {entry['text']}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Page.loadEventFired":
            self.loaded = True

    def open(
        self,
        path: Path,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        state: str = "",
    ) -> None:
        """Loads a file at a viewport size. Anything narrower than 600 px counts as a phone.

        `state` is what stands behind the # of the address.
        """
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Emulation.setEmulatedMedia", features=features)
        # From an empty page: an address that differs behind its # alone would load nothing anew.
        for url in ("about:blank", f"{path.resolve().as_uri()}#{state}"):
            self.loaded = False
            self.call("Page.navigate", url=url)
            while not self.loaded:
                self._receive()

    def run(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            exception = answer["exceptionDetails"].get("exception", {})
            raise RuntimeError(exception.get("description", "exception"))
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """PNG of the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
