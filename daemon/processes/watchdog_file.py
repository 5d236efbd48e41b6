"""The watchdog file lets a parent detect and end a process with a main loop that hangs.

A process that is stopped or hangs does not end, so it would not be restarted. Therefore its main
loop touches a file in the runtime folder, which costs almost nothing and never blocks.
"""

import os
from collections.abc import Callable
from pathlib import Path

INTERVAL_S = 0.25
"""Seconds between beats."""
# A process that does not beat is not left alone for ever because others leave it no CPU.
MAX_STARVED = 20


class WatchdogFile:
    """The watchdog file in the watched process; `name` is the name of the process."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = _path(folder, name)
        self._path.touch()

    def beat(self) -> None:
        """Touch the file; call this in each pass of the main loop."""
        os.utime(self._path)


class Watchdog:
    """The parent's side: call `look` every `interval_s`; a hang is `silence_s` without a beat.

    Time is counted in calls, so that a delay of the parent does not count; and calls after which
    `is_starved` is true, because the process had no CPU, count only up to a limit. The first beat
    may take `start_s`. All times are in seconds.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        interval_s: float,
        silence_s: float,
        start_s: float,
        is_starved: Callable[[], bool] = lambda: False,
    ) -> None:
        self._path = _path(folder, name)
        self._path.unlink(missing_ok=True)
        self._interval_s, self._silence_s, self._start_s = interval_s, silence_s, start_s
        self._is_starved = is_starved
        self._last_beat = 0
        self._still_looks = self._starved_looks = 0

    def look(self) -> float:
        """The seconds since the last beat, or 0 while they are within the limit."""
        try:
            beat = self._path.stat().st_mtime_ns
        except OSError:
            beat = 0
        if beat != self._last_beat:
            self._last_beat, self._still_looks, self._starved_looks = beat, 0, 0
        limit_s = self._silence_s if beat else self._start_s
        if self._still_looks * self._interval_s > limit_s / 2 and self._is_starved():
            self._starved_looks += 1
        self._still_looks += 1
        still_s = self._still_looks * self._interval_s
        starved_s = min(self._starved_looks * self._interval_s, MAX_STARVED * limit_s)
        return still_s if still_s - starved_s > limit_s else 0.0


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.watchdog"
