"""The witness: looks at /health, /ready and the log all the time, and knows when it was held up."""

import http.client
import math
import threading
import time
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from tests.end_to_end.daemon import Daemon

LOOK_S = 0.03
ANSWER_TIMEOUT_S = 1.0
SILENT = -1  # somebody is there and does not answer: nobody has noticed that yet
RESUME_S = 6.0  # after a green look, for the first token: others share the machine


@dataclass(frozen=True)
class Look:
    """What was answered at a time; 0 where nobody was there. `body` is that of /health."""

    at: float
    health: int
    ready: int
    body: str

    @property
    def is_green(self) -> bool:
        """Whether either claims that all is well."""
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

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def noticed_at(self, since: float) -> float | None:
        """When the daemon first showed that it knows: an error in its log, or a /health not ok."""
        told = [at for at, _ in self.errors if at >= since]
        told += [
            look.at for look in self.looks if look.at >= since and look.health not in (200, SILENT)
        ]
        return min(told, default=None)

    def wait_noticed(self, since: float, timeout_s: float) -> float:
        """Until then, in seconds since; an AssertionError after the time."""
        deadline = time.monotonic() + timeout_s
        while (at := self.noticed_at(since)) is None:
            assert time.monotonic() < deadline, f"not noticed within {timeout_s} s"
            time.sleep(LOOK_S)
        return at - since

    def green_s(self, since: float) -> float:
        """For how long it went on to look well."""
        red = [look.at for look in self.looks if look.at >= since and not look.is_green]
        return min(red, default=math.inf) - since

    def held_up_s(self, since: float, until: float) -> float:
        """For how long the machine gave this thread nothing to run on."""
        return sum(late_s for at, late_s in self._late if since <= at <= until + 1)

    def lies(self, progress: Sequence[float], bound_s: float) -> list[Look]:
        """Green looks when nothing had come for `bound_s`, and nothing came soon after them."""

        def is_lie(look: Look) -> bool:
            following = bisect(progress, look.at)
            before, after = progress[following - 1], progress[following]
            return look.at - before > bound_s and after - look.at > RESUME_S

        within = [look for look in self.looks if progress[0] <= look.at < progress[-1]]
        return [look for look in within if look.is_green and is_lie(look)]

    def _watch(self) -> None:
        while not self._stop.is_set():
            before = time.monotonic()
            time.sleep(LOOK_S)
            now = time.monotonic()
            self._late.append((now, now - before - LOOK_S))
            self._read_log()
            health, body = self._ask("/health")
            ready, _ = self._ask("/ready")
            self.looks.append(Look(now, health, ready, body))

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
        self.errors += [
            (now, line) for line in whole.decode().splitlines() if line.startswith("ERROR")
        ]
