"""OOM kills: tells a SIGKILL of the kernel's OOM killer from any other.

The exit status of a process does not tell who has killed it. The kernel counts the processes that
its OOM killer has ended, per control group and in all: a count that has just grown explains a
SIGKILL.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

# A process with much memory dies slowly, so its exit is seen up to this long after its kill.
RECENT_S = 10.0
_REFRESH_S = 1.0
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_HOST = Path("/proc/vmstat")


def count_oom_kills() -> int:
    """The OOM kills in the control group of this process, or else on the whole host, since boot.

    0 where the kernel does not count them.
    """
    for file in (*_counters(), _HOST):
        with suppress(OSError, ValueError):
            fields = dict(line.split(" ", 1) for line in file.read_text().splitlines())
            if "oom_kill" in fields:
                return int(fields["oom_kill"])
    return 0


class OomKills:
    """Call `refresh` now and then, so that old OOM kills explain no later SIGKILL."""

    def __init__(
        self,
        count: Callable[[], int] = count_oom_kills,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count, self._clock = count, clock
        self._num_kills = count()
        self._grown_at = float("-inf")
        self._next_refresh_at = 0.0

    def refresh(self) -> None:
        """Look at the count, at most once a second."""
        if self._clock() >= self._next_refresh_at:
            self._next_refresh_at = self._clock() + _REFRESH_S
            self._look()

    def are_recent(self) -> bool:
        """Whether the OOM killer has ended a process in the last `RECENT_S` seconds."""
        self._look()
        return self._clock() - self._grown_at < RECENT_S

    def _look(self) -> None:
        num_kills = self._count()
        if num_kills > self._num_kills:
            self._num_kills, self._grown_at = num_kills, self._clock()


def _counters() -> Iterable[Path]:
    """The files with the count of this process's control group, for both versions of cgroups.

    A container may see its own group as the root, whatever the path in /proc says.
    """
    with suppress(OSError):
        for line in _OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield _CGROUPS / path.lstrip("/") / "memory.events"
            elif controllers == "memory":
                yield _CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control"
    yield _CGROUPS / "memory.events"
