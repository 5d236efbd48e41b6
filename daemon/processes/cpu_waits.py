"""CPU waits: tells a process that is starved of CPU from one that hangs.

Both make no progress. But the threads of a starved process are ready to run and wait for a CPU,
which the kernel counts (`/proc/PID/task/TID/schedstat`); those of a process that hangs or is
stopped sleep. Where the kernel does not count this, no process counts as starved.
"""

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

# A process is starved if its threads together wait for a CPU for this share of the time. Threads
# that only send heartbeats wait for a few percent of it, even if ten others want the CPU.
STARVED_SHARE = 0.5


def cpu_wait_s(pid: int) -> float:
    """The seconds for which the threads of a process have been ready without a CPU, added up."""
    total_ns = 0
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError, IndexError):  # the thread has ended, or no figures
                total_ns += int((thread / "schedstat").read_text().split()[1])
    return total_ns / 1e9


class CpuWaits:
    """Call `are_starved` again and again while processes are suspected."""

    def __init__(
        self,
        wait_s: Callable[[int], float] = cpu_wait_s,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wait_s, self._clock = wait_s, clock
        self._waits: dict[int, tuple[float, float]] = {}  # by pid: the time, and the wait until it

    def are_starved(self, pids: Collection[int]) -> bool:
        """Whether any of these processes has been starved since it was last asked about.

        A process that is asked about for the first time is not.
        """
        now, found = self._clock(), {pid: self._wait_s(pid) for pid in pids}
        before, self._waits = self._waits, {pid: (now, wait_s) for pid, wait_s in found.items()}
        return any(
            wait_s - before[pid][1] > STARVED_SHARE * (now - before[pid][0])
            for pid, wait_s in found.items()
            if pid in before and now > before[pid][0]
        )
