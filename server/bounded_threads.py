"""Bounded threads: calls that may never return, a few at a time, each given up on after a while.

Python cannot end a thread. One that does not return keeps its place, and as a daemon thread it does
not keep the process from ending.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")


class BoundedThreads:
    """At most `num_threads` calls at once; all belong to one asyncio loop."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._free = asyncio.Semaphore(num_threads)
        self._name = name

    async def run(self, call: Callable[[], Result], timeout_s: float) -> Result:
        """What `call` returns or raises; `TimeoutError` after so many seconds, waiting included."""
        async with asyncio.timeout(timeout_s):
            await self._free.acquire()
            loop = asyncio.get_running_loop()
            outcome: asyncio.Future[Result] = loop.create_future()

            def work() -> None:
                settle = _outcome_of(call, outcome)
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(self._finish, outcome, settle)

            threading.Thread(target=work, name=self._name, daemon=True).start()
            return await outcome

    def _finish(self, outcome: "asyncio.Future[Result]", settle: Callable[[], None]) -> None:
        self._free.release()
        if not outcome.done():
            settle()


def _outcome_of(
    call: Callable[[], Result], outcome: "asyncio.Future[Result]"
) -> Callable[[], None]:
    """Make the call; returns what tells its outcome."""
    try:
        result = call()
    except Exception as error:  # to be raised where it is awaited
        failure = error
        return lambda: outcome.set_exception(failure)
    return lambda: outcome.set_result(result)
