"""A real daemon for tests: `tdpipe serve` with all its processes, on a free port."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import openai
import psutil

from configs.schema.model import DEMO_MODEL
from tests.kernels import prepare_data_dir
from tests.processes import split_words, words_of

ROOT = Path(__file__).resolve().parents[2]
PREDICTOR = str(DEMO_MODEL.parent / "predictor")
LOG_FILE = "tdpipe.log"
SECRET = "a-secret-of-these-tests"
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 60.0


class Daemon:
    """`tdpipe serve ARGUMENTS` for the length of a `with` block, which ends with SIGTERM.

    It is started by the command `under`, if there is one, and found at `address`.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        cwd: Path = ROOT,
        under: Sequence[str] = (),
        address: str = "127.0.0.1",
    ) -> None:
        self.folder = folder
        self._address = address
        self._cwd = cwd
        self._under = under
        self.log_path = folder / "daemon.log"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
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
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TDPIPE_")}
        command = [*self._under, sys.executable, str(ROOT / "tdpipe.py"), "serve"]
        command += ["--runtime-dir", str(self.folder / "run"), "--port", "0"]
        # These tests do not need a good profile, and there are many starts.
        data_dir = prepare_data_dir(self.folder / "data")
        command += ["--data-dir", str(data_dir), "--profile-seconds", "0.3"]
        command += self._arguments
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self._cwd,
            )

    def wait_ready(self) -> None:
        """Until /ready says so."""
        self.wait_for(lambda: self.get("/ready")[0] == 200, START_TIMEOUT_S)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Poll until true; an AssertionError with the log when it is not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s:\n{self.log()}"
            assert self.process.poll() is None, f"the daemon ended:\n{self.log()}"
            time.sleep(0.05)

    def wait_end(self, timeout_s: float = END_TIMEOUT_S) -> int:
        """The exit code, within the time."""
        return self.process.wait(timeout_s)

    @property
    def is_running(self) -> bool:
        """Whether there is a supervisor."""
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The supervisor."""
        assert self._process is not None
        return self._process

    @property
    def url(self) -> str:
        """Where it listens; only once it does."""
        return f"http://{self._address}:{(self.folder / 'run' / 'port').read_text()}"

    def client(self) -> openai.OpenAI:
        """An official client that does not retry on its own."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    def async_client(self) -> openai.AsyncOpenAI:
        """The same for asyncio."""
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300
        )

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET; status 0 without an answer."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def health(self) -> dict[str, Any]:
        """The body of /health."""
        body: dict[str, Any] = json.loads(self.get("/health")[1])
        return body

    def metric(self, name: str) -> float:
        """The sum of a metric's samples over its labels; the first labels may be given."""
        values = [
            float(line.rsplit(" ", 1)[1])
            for line in self.get("/metrics")[1].splitlines()
            if line.startswith((f"{name} ", f"{name}{{", f"{name},"))
        ]
        assert values, f"no metric {name}"
        return sum(values)

    def descendants(self) -> dict[str, list[psutil.Process]]:
        """The daemon's processes by what they are: server, engine, torchrun, stage."""
        kinds: dict[str, list[psutil.Process]] = {}
        for child in psutil.Process(self.process.pid).children():
            arguments = words_of(child)
            module = arguments[arguments.index("-m") + 1]
            kinds["torchrun" if module == "workers" else module] = [child]
        kinds["stage"] = kinds["torchrun"][0].children()
        return kinds

    def present(self) -> list[psutil.Process]:
        """Every process that runs in its folder, whatever started it; zombies do not count."""
        folder = str(self.folder / "run")
        return [
            process
            for process in psutil.process_iter(["cmdline", "status"])
            if folder in split_words(process.info["cmdline"])
            if process.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def log(self) -> str:
        """What the daemon has printed."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


def all_gone(processes: list[psutil.Process], timeout_s: float) -> bool:
    """Whether every process has ended within the time (a zombie has)."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not any(_runs(process) for process in processes):
            return True
        time.sleep(0.05)
    return False


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
