"""The lines of a daemon's batches, answered by its engine.

Each request is retried until its answer is final, see `server.requests.retry`.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from opentelemetry.trace import SpanKind

from daemon.observability.tracing import Tracing
from server.batches.storage.answers import OK, LineAnswer, answered
from server.batches.storage.lines import LineRequest
from server.batches.window import Window
from server.http.errors import CLIENT_CLOSED_REQUEST, ApiError
from server.metrics import Metrics
from server.openai.routes.endpoint import Endpoint
from server.requests.engine_client import EngineClient
from server.requests.monitoring.request_trace import RequestTrace
from server.requests.retry import ask_until_final

POLL_INTERVAL_S = 0.1


class EngineLines:
    """Answers lines; none starts while `is_closed` returns true. Each attempt has a trace."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint[Any]],
        client: EngineClient,
        count: Callable[[str], None],
        is_closed: Callable[[], bool],
        tracing: Tracing | None = None,
    ) -> None:
        self._endpoints: Mapping[str, Endpoint[Any]] = {e.path: e for e in endpoints}
        self._client = client
        self._count = count
        self._is_closed, self._tracing = is_closed, tracing
        self._opening = asyncio.Lock()

    async def answer(self, request: LineRequest) -> LineAnswer:
        """See `server.batches.window.AnswerLine`."""
        reply_id, body = await ask_until_final(
            self._client,
            lambda: self._ask(request),
            wait_open=self._wait_open,
            on_retry=partial(self._count, "retry"),
        )
        return answered(request.custom_id, OK, reply_id, body)

    async def _ask(self, request: LineRequest) -> tuple[str, bytes]:
        """Return the id and the body of the reply."""
        with self._traced(request) as trace:
            reply = await self._endpoints[request.url].prepare(request.body, offline=True)
            reply_id = reply.rendering.reply_id
            if trace is not None:
                reply.generation.trace = trace
                trace.replied(reply_id, stream=False)
            return reply_id, await reply.whole()

    @contextmanager
    def _traced(self, request: LineRequest) -> Iterator[RequestTrace | None]:
        """A trace of its own for the line: the request that made the batch ended long ago."""
        trace = None
        if self._tracing is not None:
            attributes = {"tdpipe.batch.custom_id": request.custom_id}
            trace = RequestTrace.begin(
                self._tracing, request.url, (), attributes, SpanKind.INTERNAL
            )
        status, outcome = 500, "error"
        try:
            yield trace
            status, outcome = OK, "success"
        except ApiError as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            status, outcome = CLIENT_CLOSED_REQUEST, "cancelled"
            raise
        finally:
            if trace is not None:
                trace.end(status, outcome)

    async def _wait_open(self) -> None:
        """Wait until requests may start; one caller polls while the others wait for the lock."""
        async with self._opening:
            await self._client.wait_ready()
            while self._is_closed():
                await asyncio.sleep(POLL_INTERVAL_S)
                await self._client.wait_ready()


def engine_window(
    endpoints: Sequence[Endpoint[Any]],
    client: EngineClient,
    metrics: Metrics,
    max_open: int,
    is_closed: Callable[[], bool] = lambda: False,
    tracing: Tracing | None = None,
) -> Window:
    """Build the window of an engine, for the paths of these endpoints."""

    def count(outcome: str) -> None:
        metrics.batch_requests.labels(outcome).inc()

    lines = EngineLines(endpoints, client, count, is_closed, tracing)
    return Window(lines.answer, lambda: max_open, count)
