"""A browser without a window: chromium, by the DevTools protocol over a pipe.

The protocol is JSON with a zero byte after each message, see
https://chromedevtools.github.io/devtools-protocol/. The pipe needs no library and no port.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE_S = 60.0
# Root has no sandbox, and a container often little shared memory.
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


def find_chromium() -> str | None:
    """The program, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class BrowserError(Exception):
    """The browser or the page has failed."""


class Browser:
    """One page; use it in a `with` statement. `problems` are errors that the page has logged."""

    def __init__(self, program: str, profile: Path) -> None:
        self.problems: list[str] = []
        self._read_end, theirs_out = os.pipe()
        theirs_in, self._write_end = os.pipe()
        # The pipe is at the descriptors 3 and 4 of the browser.
        command = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
        arguments = (program, *_FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}")
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", *arguments],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out):
            os.close(end)
        self._buffer, self._number, self._session = bytearray(), 0, ""

    def __enter__(self) -> Self:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read_end)
        os.close(self._write_end)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result. Raises `BrowserError`."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_end, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == number:
                break
            self._note(answer)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Open a page in a window of this size."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript. Raises `BrowserError`."""
        answer = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """Wait until an expression is true, and return its value. Raises `BrowserError`.

        An expression that fails is false: what it names may not be there yet.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(BrowserError):
                if value := self.run(script):
                    return value
            if time.monotonic() > deadline:
                text = self.run("document.body.innerText")
                raise BrowserError(f"{script} did not come about: {text} {self.problems}")
            time.sleep(0.05)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as PNG."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _receive(self, deadline: float) -> dict[str, Any]:
        while (end := self._buffer.find(b"\0")) < 0:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._read_end], [], [], left_s)[0]:
                raise BrowserError("the browser does not answer")
            piece = os.read(self._read_end, 1 << 16)
            if not piece:
                raise BrowserError("the browser has ended")
            self._buffer += piece
        message: dict[str, Any] = json.loads(self._buffer[:end])
        del self._buffer[: end + 1]
        return message

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.problems.append(str(details.get("exception", details)))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(f"{parameters['entry']['text']} {parameters['entry'].get('url')}")
