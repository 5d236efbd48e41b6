"""The intake: how many bytes of bodies may be between their first byte and the queue at one time.

One body is bounded, and so is the queue. Before it, thousands could come in and wait to be read.
"""

from typing import Self

from server.errors import too_busy

# uvicorn reads as much ahead on each connection, whatever is held here.
FREE_BYTES = 64 * 1024


class Intake:
    """At most `max_bytes` in all of what exceeds `FREE_BYTES` in each body."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes

    def take(self, num_bytes: int) -> None:
        """So much more is held. Raises `ApiError` (429) where there is no room for it."""
        if self.num_bytes + num_bytes > self._max_bytes:
            raise too_busy("Too many large requests are coming in. Please retry shortly.")
        self.num_bytes += num_bytes


class Held:
    """What one body holds of the intake, for the length of a `with` block."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._num_bytes = 0

    def grow(self, num_bytes: int) -> None:
        """The body has so many bytes by now. Raises `ApiError` (429)."""
        more = max(0, num_bytes - FREE_BYTES) - self._num_bytes
        if more > 0:
            self._intake.take(more)
            self._num_bytes += more

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._intake.num_bytes -= self._num_bytes
        self._num_bytes = 0
