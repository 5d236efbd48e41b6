"""The watchdog file: a parent detects a process with a main loop that hangs, and ends it.

A process that was stopped or hangs does not end, so it would not be restarted. Its main loop
touches a file in the runtime folder instead, which costs next to nothing and never blocks.
"""

import os
from pathlib import Path

INTERVAL_S = 0.25
"""How often to beat."""


class WatchdogFile:
    """The process's end; `name` is that of the process."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = _path(folder, name)
        self._path.touch()

    def beat(self) -> None:
        """Call it in each pass of the main loop."""
        os.utime(self._path)


class Watchdog:
    """The parent's end: checks every `interval_s` seconds, accepts no beat for `silence_s`.

    Time is counted in checks: a delay of the parent itself is not charged to the child. Until its
    first beat a process may take `start_s`.
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
        """The seconds for which it has not beaten, 0 while that is within the limit."""
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
