"""The actuator: discovers the instances of a router, and starts and stops them.

The router's core decides that an instance is needed or can go; an actuator knows how this is done
where the instances run. An instance's name is its URL.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

Report = Callable[[str], None]
"""Takes the name of an instance that has joined or is gone; it must not wait."""


class ActuatorError(Exception):
    """An instance could not be started or stopped; the text is one line for the operator."""


class Actuator(Protocol):
    """What all actuators offer. All methods are called in one event loop."""

    async def run(self, on_joined: Report, on_gone: Report) -> None:
        """Report instances as they come and go, until cancelled or closed; call it once.

        An instance is reported once it can be reached. While the source of the information is
        unreachable, the instances last reported are kept: that they serve is seen by their own
        status, not here.
        """

    async def grow(self) -> None:
        """Ask for one more instance; returns before it is ready.

        Nothing is done while one is being started, within `scale_cooldown` of the last start, and
        with `max_instances`. Raises `ActuatorError`.
        """

    async def remove(self, name: str) -> None:
        """Stop an instance that has drained, and wait until it is gone, for a bounded time.

        Raises `ActuatorError` if it is not; an instance that is still there has then been reported
        as joined again, because it may serve.
        """

    def pick(self, names: Sequence[str]) -> str | None:
        """The instance that may be removed next, of these; None if none of them may.

        The caller's order is that of its preference, and the first is taken unless the platform
        dictates the order. No instance may be removed with `min_instances`.
        """

    async def close(self) -> None:
        """End what the actuator has started on this host, and its connections."""


class GrowthLimit:
    """Limits how many instances are started, and how often.

    Without a cooldown, instances that fail at once would be started again and again.
    """

    def __init__(
        self, max_instances: int, cooldown_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_instances = max_instances
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._next = float("-inf")

    def allows(self, num_instances: int) -> bool:
        """Whether another one may be started now, beside so many; those being started count."""
        return num_instances < self._max_instances and self._clock() >= self._next

    def start(self) -> None:
        """Note that one is started now."""
        self._next = self._clock() + self._cooldown_s


async def happens(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for the event; whether it has happened within the time."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True


class Lifetime:
    """The work of an actuator's `run`, which ends when the actuator is closed."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Await the work, but cancel it as soon as the actuator is closed."""
        self._idle.clear()
        working, closing = asyncio.create_task(work), asyncio.create_task(self.closed.wait())
        try:
            await asyncio.wait((working, closing), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            working.cancel()
            closing.cancel()
            await asyncio.wait((working, closing))
            self._idle.set()

    async def close(self) -> None:
        """End the work and wait until it has ended; it can be called before `run` too."""
        self.closed.set()
        await self._idle.wait()
