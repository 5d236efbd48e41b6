"""The window: keeps a bounded number of requests open until they are answered.

The window is wide, so that the scheduler has many lengths to choose from. All of its requests are
offline: they use the capacity that online requests leave. Each request is retried until its answer
is final, see `server.requests.retry`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from server.batches.storage.answers import OK, LineAnswer, answered
from server.batches.storage.lifecycle import new_id
from server.batches.storage.lines import LineRequest
from server.http.errors import ApiError, failed
from server.metrics import Metrics
from server.openai.routes.endpoint import Endpoint
from server.requests.engine_client import EngineClient
from server.requests.retry import ask_until_final

POLL_INTERVAL_S = 0.1
# The number of windows at the end of a batch in which requests start longest answer first.
SORTED_WINDOWS = 2

logger = logging.getLogger("tdpipe")


class Window:
    """Runs requests of several batches; starts none while `is_closed` returns true."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint[Any]],
        client: EngineClient,
        metrics: Metrics,
        max_open: int,
        is_closed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._endpoints: Mapping[str, Endpoint[Any]] = {e.path: e for e in endpoints}
        self._client = client
        self._num_asked = metrics.batch_requests
        self._is_closed = is_closed
        self._max_open = max_open
        self._slots = asyncio.Semaphore(max_open)
        self._opening = asyncio.Lock()

    def num_in_order(self, num_requests: int) -> int:
        """Return how many of `num_requests` start in the file's order.

        The rest starts longest first, so that no long answer runs by itself after all others have
        ended. Before that, a window in the file's order offers all lengths to the scheduler.
        """
        return max(0, num_requests - SORTED_WINDOWS * self._max_open)

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
                await self._slots.acquire()
                task = group.create_task(self._run_one(request, take))
                # Not in the task: a task that is cancelled before it starts would keep its slot.
                task.add_done_callback(lambda _: self._slots.release())
                # Yield to the event loop between requests, because tokenizing one may take long.
                await asyncio.sleep(0)
            on_begun()

    async def _run_one(
        self, request: LineRequest, take: Callable[[LineAnswer], Awaitable[None]]
    ) -> None:
        answer = await self._answer(request)
        await take(answer)
        self._num_asked.labels("success" if answer.is_success else "error").inc()

    async def _answer(self, request: LineRequest) -> LineAnswer:
        try:
            reply_id, body = await ask_until_final(
                self._client,
                lambda: self._ask(request),
                wait_open=self._wait_open,
                on_retry=self._num_asked.labels("retry").inc,
            )
        except ApiError as error:
            return _refused(request, error)
        # The outermost handler: a bug in one request must not end the others.
        except Exception:
            logger.exception("a request of a batch failed because of a bug")
            return _refused(request, failed("The server had an error on this request."))
        return answered(request.custom_id, OK, reply_id, body)

    async def _ask(self, request: LineRequest) -> tuple[str, bytes]:
        """Return the id and the body of the reply."""
        reply = await self._endpoints[request.url].prepare(request.body, offline=True)
        return reply.rendering.reply_id, await reply.whole()

    async def _wait_open(self) -> None:
        """Wait until requests may start; one caller polls while the others wait for the lock."""
        async with self._opening:
            await self._client.wait_ready()
            while self._is_closed():
                await asyncio.sleep(POLL_INTERVAL_S)
                await self._client.wait_ready()


def _refused(request: LineRequest, error: ApiError) -> LineAnswer:
    return answered(request.custom_id, error.status, new_id("req_"), error.body())
