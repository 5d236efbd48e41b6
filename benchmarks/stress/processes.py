"""Processes: samples the memory and descriptors of the daemon's processes, to find leaks.

Processes that are restarted during the run are included.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import psutil

MB = 2**20
# The growth that is allowed: allocators keep some memory, and log lines take some.
MOST_MB_PER_MINUTE, MOST_DESCRIPTORS = 0.5, 8
# Before that, memory still grows to its normal size, and the samples are too few.
SETTLED_S, MIN_SAMPLES = 600.0, 30


@dataclass
class ProcessSamples:
    """The samples of one process."""

    kind: str
    at: list[float] = field(default_factory=list)  # seconds
    used_mb: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def mb_per_minute(self) -> float:
        """Return the growth of memory in the later two thirds, when caches have stopped growing."""
        rest = slice(len(self.at) // 3, None)
        minutes = np.array(self.at[rest]) / 60
        return float(np.polyfit(minutes, np.array(self.used_mb[rest]), 1)[0])

    def more_descriptors(self) -> int:
        """Return the minimum of the last third minus the maximum of the first third."""
        third = len(self.at) // 3
        return min(self.descriptors[-third:]) - max(self.descriptors[:third])

    def problems(self) -> Iterator[str]:
        """Yield what has grown beyond its limit; nothing for a process that ran too briefly."""
        if len(self.at) < MIN_SAMPLES:
            return
        if (more := self.more_descriptors()) > MOST_DESCRIPTORS:
            yield f"the {self.kind} has {more} descriptors more than at first"
        slope = self.mb_per_minute()
        if self.at[-1] - self.at[0] >= SETTLED_S and slope > MOST_MB_PER_MINUTE:
            yield f"the {self.kind} grows by {slope:.2f} MB a minute"


class Processes:
    """All processes that were seen."""

    def __init__(self) -> None:
        self._samples: dict[psutil.Process, ProcessSamples] = {}

    def look(self, kind: str, process: psutil.Process, at: float) -> None:
        """Take a sample of a process, if it still exists."""
        with suppress(psutil.NoSuchProcess), process.oneshot():
            used_mb, descriptors = process.memory_info().rss / MB, process.num_fds()
            samples = self._samples.setdefault(process, ProcessSamples(kind))
            samples.at.append(at)
            samples.used_mb.append(used_mb)
            samples.descriptors.append(descriptors)

    def of(self, kind: str) -> list[ProcessSamples]:
        """Return the processes of one kind."""
        return [process for process in self._samples.values() if process.kind == kind]

    def problems(self) -> list[str]:
        """The problems of all processes."""
        return [problem for process in self._samples.values() for problem in process.problems()]

    def left_over(self, kind: str, process: psutil.Process) -> Iterator[str]:
        """Yield what an idle process has more of than in its first sample."""
        first, now = self._samples[process].descriptors[0], process.num_fds()
        if now > first + MOST_DESCRIPTORS:
            yield f"the {kind} has {now} descriptors at rest, and had {first} at first"

    def table(self) -> Iterable[str]:
        """A line for each kind: the number of processes, and the one that ran longest."""
        yield f"{'':12}{'count':>6}{'longest, s':>12}{'MB':>14}{'MB/min':>8}{'descriptors':>14}"
        for kind in sorted({process.kind for process in self._samples.values()}):
            processes = self.of(kind)
            process = max(processes, key=lambda each: each.at[-1] - each.at[0])
            slope = f"{process.mb_per_minute():+.2f}" if len(process.at) >= MIN_SAMPLES else "-"
            used = f"{process.used_mb[0]:.0f} to {max(process.used_mb):.0f}"
            files = f"{process.descriptors[0]} to {max(process.descriptors)}"
            seconds = process.at[-1] - process.at[0]
            yield f"{kind:12}{len(processes):6}{seconds:12.0f}{used:>14}{slope:>8}{files:>14}"
