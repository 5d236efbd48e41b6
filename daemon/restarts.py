"""Restarts: so many of them in so much time, and no more."""

import time
from collections import deque

from configs.schema import PipelineConfig


class Restarts:
    """Those of the last `restart_window` seconds, of which there may be `max_restarts`."""

    def __init__(self, config: PipelineConfig) -> None:
        self._most, self._window_s = config.max_restarts, config.restart_window
        self._restarted_at: deque[float] = deque()

    def count(self) -> None:
        """One has come about."""
        self._restarted_at.append(time.monotonic())

    def forget(self) -> None:
        """The reason for all of them was found, and is gone."""
        self._restarted_at.clear()

    def are_used_up(self) -> bool:
        """Whether there were as many as there may be in the window that ends now."""
        begin = time.monotonic() - self._window_s
        while self._restarted_at and self._restarted_at[0] < begin:
            self._restarted_at.popleft()
        return len(self._restarted_at) >= self._most

    def __str__(self) -> str:
        settings = "max_restarts, restart_window"
        return f"after {self._most} restarts in {self._window_s:g} s ({settings})"
