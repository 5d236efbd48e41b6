"""Draining: the server counts open requests and lets them finish before it shuts down."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from server.http.errors import unavailable


class Drain:
    """Counts open requests; once the drain has begun, new ones are refused.

    The `listeners` are called when it begins and when it ends: then no request is left.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self.has_ended = False
        self.listeners: list[Callable[[], None]] = []
        self.num_open = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def begin(self) -> None:
        """Refuse new requests from now on."""
        self.has_begun = True
        self._tell()

    def end(self) -> None:
        """End what goes on without a request, such as streams of statuses."""
        self.has_ended = True
        self._tell()

    def check(self) -> None:
        """Raise `ApiError` (503) once the drain has begun."""
        if self.has_begun:
            raise unavailable("The server is shutting down. Please retry shortly.", "shutting_down")

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as open inside the block."""
        self.num_open += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.num_open -= 1
            if not self.num_open:
                self._empty.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for all open requests; returns whether they ended within `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        return not self.num_open

    def _tell(self) -> None:
        for listener in self.listeners:
            listener()
