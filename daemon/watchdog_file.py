"""The watchdog file lets a parent detect and end a process with a main loop that hangs.

A process that is stopped or hangs does not end, so it would not be restarted. Therefore its main
loop touches a file in the runtime folder, which costs almost nothing and never blocks.
"""

import os
from pathlib import Path

INTERVAL_S = 0.25
"""Seconds between beats."""


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

    Time is counted in calls, so that a delay of the parent does not count. The first beat may take
    `start_s`. All times are in seconds.
    """

    def __init__(
        self, folder: Path, name: str, interval_s: float, silence_s: float, start_s: float
    ) -> None:
        self._path = _path(folder, name)
        self._path.unlink(missing_ok=True)
        self._interval_s, self._silence_s, self._start_s = interval_s, silence_s, start_s
        self._last_beat = 0
        self._still_looks = 0

    def look(self) -> float:
        """The seconds since the last beat, or 0 while they are within the limit."""
        try:
            beat = self._path.stat().st_mtime_ns
        except OSError:
            beat = 0
        if beat != self._last_beat:
            self._last_beat, self._still_looks = beat, 0
        self._still_looks += 1
        still_s = self._still_looks * self._interval_s
        return still_s if still_s > (self._silence_s if beat else self._start_s) else 0.0


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.watchdog"
