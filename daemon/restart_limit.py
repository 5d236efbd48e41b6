"""The restart limit: at most `max_restarts` restarts within `restart_window` seconds."""

import time
from collections import deque

from configs.schema.pipeline import PipelineConfig


class RestartLimit:
    """Counts the restarts of the last `restart_window` seconds; `max_restarts` are allowed."""

    def __init__(self, config: PipelineConfig) -> None:
        self._most, self._window_s = config.max_restarts, config.restart_window
        self._restarted_at: deque[float] = deque()

    def count(self) -> None:
        """Count a restart."""
        self._restarted_at.append(time.monotonic())

    def forget(self) -> None:
        """Forget all restarts, after their cause was found and removed."""
        self._restarted_at.clear()

    def are_used_up(self) -> bool:
        """Whether the maximum number of restarts has been reached within the window."""
        begin = time.monotonic() - self._window_s
        while self._restarted_at and self._restarted_at[0] < begin:
            self._restarted_at.popleft()
        return len(self._restarted_at) >= self._most

    def __str__(self) -> str:
        limits = "limits: max_restarts, restart_window"
        return f"giving up after {self._most} restarts in {self._window_s:g} s ({limits})"
