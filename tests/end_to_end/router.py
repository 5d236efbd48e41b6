"""A real router for tests: `tdpipe route` with all its processes, on a port of its own."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import openai
import psutil

from tests.end_to_end.conftest import free_port
from tests.end_to_end.daemon import END_TIMEOUT_S, ROOT, START_TIMEOUT_S


class Router:
    """`tdpipe route ARGUMENTS` for the length of a `with` block, which ends with SIGTERM.

    The block begins when `num_instances` take requests. Its port stays the same when it is started
    again.
    """

    def __init__(self, folder: Path, *arguments: str, num_instances: int = 1) -> None:
        self._log_path = folder / "router.log"
        self._arguments, self._num_instances = arguments, num_instances
        self._process: subprocess.Popen[bytes] | None = None
        self._port = free_port()

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_up(self._num_instances)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if kind is not None:
            sys.stderr.write(self.log())
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(END_TIMEOUT_S)
        if kind is None:
            assert code == 0, self.log()

    def start(self) -> None:
        """Start it and return at once."""
        command = [sys.executable, str(ROOT / "tdpipe.py"), "route"]
        command += ["--data-dir", str(self._log_path.parent / "router-data")]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TDPIPE_")}
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self._port), *self._arguments],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=environment,
            )

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """Its process."""
        assert self._process is not None
        return self._process

    @property
    def url(self) -> str:
        """Where it listens, or will."""
        return f"http://127.0.0.1:{self._port}"

    def log(self) -> str:
        """What it has printed."""
        return self._log_path.read_text(errors="replace")

    def instances(self) -> list[dict[str, Any]]:
        """The state of each instance; none while it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/instances", timeout=10) as answer:
                shown: list[dict[str, Any]] = json.load(answer)["instances"]
        except (OSError, ValueError):
            return []
        return shown

    def states(self) -> dict[str, str]:
        """The state of each instance by its URL."""
        return {each["url"]: each["state"] for each in self.instances()}

    def wait_up(self, number: int, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until so many instances take requests, and it has no others."""
        deadline = time.monotonic() + timeout_s
        while list(self.states().values()) != ["up"] * number:
            assert time.monotonic() < deadline, self.log()
            assert self.process.poll() is None, self.log()
            time.sleep(0.05)

    def metrics(self) -> str:
        """The page of metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as page:
            text: str = page.read().decode()
        return text

    def descendants(self) -> list[psutil.Process]:
        """The processes of its local instances."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def client(self, max_retries: int = 0) -> openai.AsyncOpenAI:
        """An official client, which by default does not retry on its own."""
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=max_retries, timeout=300
        )


def instances_of(*urls: str) -> tuple[str, str]:
    """The arguments of a router before these daemons."""
    return "--instances", ",".join(urls)
