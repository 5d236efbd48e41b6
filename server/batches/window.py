"""The window: keeps a bounded number of requests open until they are answered.

The window is wide, so that a scheduler has many lengths to choose from. All of its requests are
offline: they use the capacity that online requests leave. What answers them is handed in: the
engine of a daemon (`server.batches.engine_lines`), or the instances of a router.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from server.batches.storage.answers import LineAnswer, answered
from server.batches.storage.lifecycle import new_id
from server.batches.storage.lines import LineRequest
from server.http.errors import ApiError, failed

# The number of windows at the end of a batch in which requests start longest answer first.
SORTED_WINDOWS = 2
# How often a full window asks again how many requests may be open.
LIMIT_INTERVAL_S = 1.0

logger = logging.getLogger("tdpipe")

AnswerLine = Callable[[LineRequest], Awaitable[LineAnswer]]
"""Returns the final answer to a line, and retries until it has one. Raises `ApiError`."""


class Window:
    """Runs requests of several batches, at most `max_open()` at one time.

    The limit is read for each request. `count` gets the outcome of each: success or error.
    """

    def __init__(
        self, answer: AnswerLine, max_open: Callable[[], int], count: Callable[[str], None]
    ) -> None:
        self._answer_line = answer
        self._max_open = max_open
        self._count = count
        self._num_open = 0
        self._freed = asyncio.Event()

    def num_in_order(self, num_requests: int) -> int:
        """Return how many of `num_requests` start in the file's order.

        The rest starts longest first, so that no long answer runs by itself after all others have
        ended. Before that, a window in the file's order offers all lengths to the scheduler.
        """
        return max(0, num_requests - SORTED_WINDOWS * self._max_open())

    async def run(
        self,
        requests: AsyncIterator[LineRequest],
        take: Callable[[LineAnswer], Awaitable[None]],
        on_begun: Callable[[], None] = lambda: None,
    ) -> None:
        """Answer all requests; `on_begun` is called when the last of them is open.

        An error raised by `take` ends the run. Cancelling the call aborts open requests.
        """
        async with asyncio.TaskGroup() as group:
            async for request in requests:
                await self._acquire()
                task = group.create_task(self._run_one(request, take))
                # Not in the task: a task that is cancelled before it starts would keep its slot.
                task.add_done_callback(lambda _: self._release())
                # Yield to the event loop between requests, because tokenizing one may take long.
                await asyncio.sleep(0)
            on_begun()

    async def _acquire(self) -> None:
        while self._num_open >= self._max_open():
            self._freed.clear()
            try:
                async with asyncio.timeout(LIMIT_INTERVAL_S):
                    await self._freed.wait()
            except TimeoutError:
                continue
        self._num_open += 1

    def _release(self) -> None:
        self._num_open -= 1
        self._freed.set()

    async def _run_one(
        self, request: LineRequest, take: Callable[[LineAnswer], Awaitable[None]]
    ) -> None:
        answer = await self._answer(request)
        await take(answer)
        self._count("success" if answer.is_success else "error")

    async def _answer(self, request: LineRequest) -> LineAnswer:
        try:
            return await self._answer_line(request)
        except ApiError as error:
            return _refused(request, error)
        # The outermost handler: a bug in one request must not end the others.
        except Exception:
            logger.exception("a request of a batch failed because of a bug")
            return _refused(request, failed("The server had an error on this request."))


def _refused(request: LineRequest, error: ApiError) -> LineAnswer:
    return answered(request.custom_id, error.status, new_id("req_"), error.body())
