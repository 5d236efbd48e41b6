"""The work of a device: whether it computes the steps that were launched, or waits for one's input.

The host does not wait for a GPU, so that it cannot tell this from what it does itself.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from workers.device.events import Event


class DeviceWork:
    """The launched steps; `doing` may be called from another thread."""

    def __init__(self, make_event: Callable[[], Event]) -> None:
        self._make_event = make_event
        self._begun = make_event()
        self._steps: deque[tuple[Event, Event]] = deque()  # when each has its input, and its end

    def begin(self) -> None:
        """Mark that the input of a step has arrived, on the current stream."""
        self._begun = self._make_event()
        self._begun.record()

    def end(self) -> None:
        """Mark the end of what the step has queued on the current stream."""
        ended = self._make_event()
        ended.record()
        while self._steps and self._steps[0][1].query():
            self._steps.popleft()
        self._steps.append((self._begun, ended))

    def doing(self) -> Literal["waits", "computes"] | None:
        """What the device does with the first step that it has not finished; None without one."""
        with suppress(RuntimeError):  # the device has failed, which the main thread reports
            for begun, ended in list(self._steps):
                if not ended.query():
                    return "computes" if begun.query() else "waits"
        return None
