"""The deadline: ends a request with 408 if it takes too long, in the queue or running."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.http.errors import timed_out


class Deadline:
    """The deadline of one request, counted from the construction; None means no limit."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._at: float | None = None
        if timeout_s is not None:
            self._at = asyncio.get_running_loop().time() + timeout_s

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Cancel the block at the deadline, and raise `ApiError` (408)."""
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
    """Return the deadline for the shortest of these timeouts."""
    return Deadline(min((each for each in timeouts_s if each is not None), default=None))
