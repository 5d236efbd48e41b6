"""The witness: polls /health, /ready and the log all the time, and knows its own delays."""

import http.client
import threading
import time
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from tests.end_to_end.daemon import Daemon

LOOK_S = 0.03
ANSWER_TIMEOUT_S = 1.0
SILENT = -1  # the port is open and does not answer: the failure is not noticed yet
READY = " KV cache: "  # in the log, as soon as a pipeline is ready


@dataclass(frozen=True)
class Look:
    """The answers at a time; 0 where no server listened. `body` is that of /health.

    `num_ready` is how often a pipeline had become ready by then, since the witness has begun.
    """

    at: float
    health: int
    ready: int
    body: str
    num_ready: int

    @property
    def is_green(self) -> bool:
        """Whether either reports that all is well."""
        return 200 in (self.health, self.ready)


class Witness:
    """Watches a daemon for the length of a `with` block, in a thread."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._address = urlsplit(daemon.url).netloc
        self._log_from = daemon.log_path.stat().st_size
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="witness")
        self.looks: list[Look] = []
        self.errors: list[tuple[float, str]] = []
        self._late: list[tuple[float, float]] = []
        self._num_ready = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def noticed_at(self, since: float) -> float | None:
        """When the daemon first reported the fault: an error in its log, or a /health not ok."""
        times = [at for at, _ in self.errors if at >= since]
        times += [
            look.at for look in self.looks if look.at >= since and look.health not in (200, SILENT)
        ]
        return min(times, default=None)

    def wait_noticed(self, since: float, timeout_s: float) -> float:
        """Wait for that, in seconds since; an AssertionError after the time."""
        deadline = time.monotonic() + timeout_s
        while (at := self.noticed_at(since)) is None:
            assert time.monotonic() < deadline, f"not noticed within {timeout_s} s"
            time.sleep(LOOK_S)
        return at - since

    def held_up_s(self, since: float, until: float) -> float:
        """For how long the machine did not schedule this thread."""
        return sum(late_s for at, late_s in self._late if since <= at <= until + 1)

    def lies(self, since: float) -> list[Look]:
        """Green answers after that time, and before a pipeline had become ready again."""
        return [
            look for look in self.looks if look.is_green and look.at > since and not look.num_ready
        ]

    def _watch(self) -> None:
        while not self._stop.is_set():
            before = time.monotonic()
            time.sleep(LOOK_S)
            now = time.monotonic()
            self._late.append((now, now - before - LOOK_S))
            health, body = self._ask("/health")
            ready, _ = self._ask("/ready")
            self._read_log()  # after that: a pipeline is in the log before /health reports it
            self.looks.append(Look(now, health, ready, body, self._num_ready))

    def _ask(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._address, timeout=ANSWER_TIMEOUT_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except TimeoutError:
            return SILENT, ""
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def _read_log(self) -> None:
        with self._daemon.log_path.open("rb") as file:
            file.seek(self._log_from)
            new = file.read()
        whole, _, _ = new.rpartition(b"\n")
        self._log_from += len(whole) + 1 if whole else 0
        now = time.monotonic()
        lines = whole.decode().splitlines()
        self.errors += [(now, line) for line in lines if line.startswith("ERROR")]
        self._num_ready += sum(READY in line for line in lines)
