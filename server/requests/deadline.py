"""The deadline: how long a request may take, queued or running, before it ends with 408."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.http.errors import timed_out


class Deadline:
    """One request's deadline, counted from now; None is no limit. It belongs to one event loop."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._at: float | None = None
        if timeout_s is not None:
            self._at = asyncio.get_running_loop().time() + timeout_s

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Cancel the block at the deadline. Raises `ApiError` (408) then."""
        if self._timeout_s is None:
            yield
            return
        time_left = asyncio.timeout_at(self._at)
        try:
            async with time_left:
                yield
        except TimeoutError:
            if not time_left.expired():
                raise
            raise timed_out(self._timeout_s) from None


NO_DEADLINE = Deadline(None)


def sooner_of(*timeouts_s: float | None) -> Deadline:
    """The deadline by the shortest of these timeouts."""
    return Deadline(min((each for each in timeouts_s if each is not None), default=None))
