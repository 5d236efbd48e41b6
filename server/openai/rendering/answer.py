"""The answer: a reply prepared for its client and written to it, whole or as a stream of events.

It lives as long as its client stays; a stream that has begun ends in `[DONE]` or with the client.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.http.connection import run_while_connected
from server.http.drain import Drain
from server.http.errors import ApiError, failed
from server.metrics import Metrics
from server.openai.rendering.direct_writer import Connection, DirectWriter, connection_of, events_of
from server.openai.rendering.event_stream import DONE, HEADERS, error_event
from server.requests.generation import num_logprobs
from server.requests.reply import Reply

# Of requests that were let in.
_OUTCOMES = {408: "timeout", 500: "error"}

logger = logging.getLogger("tdpipe")


class Answer(Response):
    """The answer to one request, which `prepare` makes a reply of.

    Raises `ApiError` while nothing has been sent: the request was refused, or a whole answer could
    not be completed.
    """

    def __init__(
        self, prepare: Callable[[], Awaitable[Reply]], metrics: Metrics, drain: Drain
    ) -> None:
        super().__init__()
        self._prepare: Callable[[], Awaitable[Reply]] | None = prepare
        self._metrics = metrics
        self._drain = drain
        self._outcome = "error"
        self._arrived_at: float | None = None  # None: it was refused before
        self._connection: Connection | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write it, unless the client goes away."""
        assert scope["type"] == "http"
        self._connection = connection_of(scope)
        with self._drain.request(), self._recorded():
            if not await run_while_connected(self._answer(send), receive):
                self._outcome = "disconnect"

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        try:
            yield
        except ApiError as error:
            self._outcome = _OUTCOMES.get(error.status, "refused")
            raise
        finally:
            self._metrics.requests.labels(self._outcome).inc()
            if self._arrived_at is not None:
                self._metrics.request_duration.observe(time.monotonic() - self._arrived_at)

    async def _answer(self, send: Send) -> None:
        prepare, self._prepare = self._prepare, None
        assert prepare is not None, "an answer is given once"
        try:
            reply = await prepare()
        except OSError as error:  # no send's, which would mean that the client has left
            raise RuntimeError("a request could not be prepared") from error
        del prepare  # the request's body is not needed any more
        self._arrived_at = reply.generation.arrived_at
        await (self._write_stream if reply.stream else self._write_whole)(reply, send)

    async def _write_whole(self, reply: Reply, send: Send) -> None:
        body = await reply.whole()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _send_body(send, body, more=False)
        self._outcome = "success"

    async def _write_stream(self, reply: Reply, send: Send) -> None:
        async with reply.generation:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            try:
                async with reply.deadline.kept():
                    end = await self._write_events(reply, send)
                self._outcome = "success"
            except ApiError as error:
                self._outcome = _OUTCOMES.get(error.status, "error")
                end = error_event(error)
            except OSError:
                raise
            # The edge: a bug goes to the log, but not without a word to the client.
            except Exception:
                logger.exception("a stream ended in a bug")
                end = error_event(failed("The server had an error while processing your request."))
        await _send_body(send, end + DONE, more=False)

    async def _write_events(self, reply: Reply, send: Send) -> bytes:
        """Write all pieces; returns what is to come before the end."""
        generation, rendering = reply.generation, reply.rendering
        opening = rendering.opening()
        if opening:
            await _send_body(send, opening, more=True)
        connection = self._connection
        if connection is not None and connection.is_chunked:
            await DirectWriter(generation, rendering, connection).run()
        while generation.num_unfinished:
            pieces = await generation.next_pieces()
            events = await generation.render(
                num_logprobs(pieces), partial(events_of, rendering, pieces)
            )
            if events:
                await _send_body(send, events, more=True)
        return rendering.usage(generation.usage()) if reply.include_usage else b""


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
