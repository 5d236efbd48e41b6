"""A run of requests: each starts at its arrival time, whether or not others have finished.

This is an open loop: a closed one slows down with the server and hides its queue. With
`max_concurrency` and all requests there at the start, it is a closed loop.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

from bench.results.record import CONNECTION, RUN_ENDED, TIMEOUT, Record

# Sends the request of this index and fills its record; raises OSError when that fails.
Ask = Callable[[int, Record], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of a run; the time in which a request waits for a slot is not limited."""

    request_timeout_s: float
    timeout_s: float
    max_concurrency: int | None = None


class LoadRun:
    """One run; times in its records are seconds since `run` began."""

    def __init__(
        self,
        arrivals: Sequence[float],
        ask: Ask,
        bounds: Bounds,
        on_end: Callable[[Record], None] = lambda _: None,
        # Not the event loop's time: uvloop's has a resolution of a millisecond.
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.records = [Record(arrival_s) for arrival_s in arrivals]
        self.duration_s = 0.0
        self._ask = ask
        self._bounds = bounds
        self._on_end = on_end
        self._clock = clock
        self._interrupted = asyncio.Event()
        self._began_at = 0.0
        limit = bounds.max_concurrency
        self._slots: AbstractAsyncContextManager[None] = (
            asyncio.Semaphore(limit) if limit else nullcontext()
        )

    def interrupt(self) -> None:
        """End the run early; the records keep what has arrived."""
        self._interrupted.set()

    def now(self) -> float:
        """Seconds since `run` began."""
        return self._clock() - self._began_at

    async def run(self) -> str:
        """Send all requests and wait for their ends; "finished", "timed out" or "interrupted"."""
        self._began_at = self._clock()
        sending = asyncio.create_task(self._send_all())
        interruption = asyncio.create_task(self._interrupted.wait())
        await asyncio.wait(
            (sending, interruption),
            timeout=self._bounds.timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        ending = "finished" if sending.done() else "timed out"
        if interruption.done() and not sending.done():
            ending = "interrupted"
        self.duration_s = self.now()
        await _cancel(sending, interruption)
        if not sending.cancelled():
            sending.result()
        self._close(ending)
        return ending

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for index, record in enumerate(self.records):
                await asyncio.sleep(max(0.0, record.arrival_s - self.now()))
                group.create_task(self._send(index, record))

    async def _send(self, index: int, record: Record) -> None:
        async with self._slots:
            record.send(self.now())
            limit_s = self._bounds.request_timeout_s
            limit = asyncio.timeout(limit_s)
            try:
                async with limit:
                    await self._ask(index, record)
            except OSError as error:  # TimeoutError is one, also that of a connection
                if limit.expired():
                    record.fail(TIMEOUT, f"no whole answer within {limit_s:g} s", self.now())
                else:
                    record.fail(CONNECTION, str(error) or type(error).__name__, self.now())
        self._on_end(record)

    def _close(self, ending: str) -> None:
        was = "was " if ending == "interrupted" else ""
        for record in self.records:
            if record.sent_s is not None and record.ended_s is None:
                record.fail(RUN_ENDED, f"open when the run {was}{ending}", self.duration_s)


async def _cancel(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
