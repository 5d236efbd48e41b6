"""Bounded threads: long calls run in a limited number of threads, behind a bounded queue.

A call that may never return is abandoned after a timeout, which does not include its time in the
queue. Python cannot end a thread: one that does not return continues to count as running. It is a
daemon thread, so it does not keep the process from exiting.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from server.http.errors import ApiError, too_busy

Result = TypeVar("Result")


class BoundedThreads:
    """At most `num_threads` calls run at once, and at most `max_waiting` others wait.

    `name` is a plural noun for what the calls process, for error messages, and `reason` the word
    for it in the metrics of refusals. All calls must be made from the same asyncio loop.
    """

    def __init__(self, num_threads: int, name: str, max_waiting: int, reason: str) -> None:
        self._free = asyncio.Semaphore(num_threads)
        self._patient_lock = asyncio.Lock()  # only one patient call at a time waits for a thread
        self._name, self._reason = name, reason
        self._max_waiting = max_waiting
        self._num_waiting = 0

    async def run(
        self,
        call: Callable[[], Result],
        timeout_s: float | None = None,
        *,
        patient: bool = False,
    ) -> Result:
        """Return what `call` returns. Raises what it raises, and `TimeoutError` after `timeout_s`.

        Raises `ApiError` (429) if too many other calls wait, or if no thread becomes free within
        `timeout_s`. A `patient` call waits without limit, and at most one of them competes with
        other calls for a thread.
        """
        if patient:
            async with self._patient_lock:
                await self._free.acquire()
        else:
            await self._wait_for_turn(timeout_s)
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Result] = loop.create_future()

        def work() -> None:
            settle = _outcome_of(call, outcome)
            with suppress(RuntimeError):  # the loop is closed, so no caller waits any more
                loop.call_soon_threadsafe(self._finish, outcome, settle)

        try:
            threading.Thread(target=work, name=self._name, daemon=True).start()
        except RuntimeError:  # the system has no more threads
            self._free.release()
            raise
        async with asyncio.timeout(timeout_s):
            return await outcome

    async def _wait_for_turn(self, timeout_s: float | None) -> None:
        if self._free.locked() and self._num_waiting >= self._max_waiting:
            raise self._too_busy()
        self._num_waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise self._too_busy() from None
        finally:
            self._num_waiting -= 1

    def _too_busy(self) -> ApiError:
        message = f"Too many {self._name} are being processed. Please retry shortly."
        return too_busy(message, self._reason)

    def _finish(self, outcome: "asyncio.Future[Result]", settle: Callable[[], None]) -> None:
        self._free.release()
        if not outcome.done():
            settle()


def _outcome_of(
    call: Callable[[], Result], outcome: "asyncio.Future[Result]"
) -> Callable[[], None]:
    """Run `call`; return a function that sets its result or exception on `outcome`."""
    try:
        result = call()
    except Exception as error:  # raised where the call is awaited
        failure = error
        return lambda: outcome.set_exception(failure)
    return lambda: outcome.set_result(result)
