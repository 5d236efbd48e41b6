"""The answer: a reply written to its client, whole or as a stream of events.

It lives as long as its client stays; a stream that has begun ends in `[DONE]` or with the client.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.connection import run_while_connected
from server.direct_writer import Connection, DirectWriter, connection_of
from server.drain import Drain
from server.errors import ApiError, failed
from server.event_stream import DONE, HEADERS, error_event
from server.metrics import Metrics
from server.reply import Reply

logger = logging.getLogger("tdpipe")


class Answer(Response):
    """The answer to one request.

    Raises `ApiError` while nothing has been sent: the request was not admitted, or a whole answer
    could not be completed.
    """

    def __init__(self, reply: Reply, metrics: Metrics, drain: Drain) -> None:
        super().__init__()
        self._reply = reply
        self._metrics = metrics
        self._drain = drain
        self._outcome = "error"
        self._connection: Connection | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write it, unless the client goes away."""
        assert scope["type"] == "http"
        self._connection = connection_of(scope)
        write = self._write_stream if self._reply.stream else self._write_whole
        with self._drain.request(), self._recorded():
            self._drain.check()
            if not await run_while_connected(write(send), receive):
                self._outcome = "disconnect"

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        try:
            yield
        except ApiError as error:
            self._outcome = "error" if error.status == 500 else "refused"
            raise
        finally:
            seconds = time.monotonic() - self._reply.generation.arrived_at
            self._metrics.requests.labels(self._outcome).inc()
            self._metrics.request_duration.observe(seconds)

    async def _write_whole(self, send: Send) -> None:
        body = await self._reply.whole()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _send_body(send, body, more=False)
        self._outcome = "success"

    async def _write_stream(self, send: Send) -> None:
        async with self._reply.generation:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            try:
                end = await self._write_events(send)
                self._outcome = "success"
            except ApiError as error:
                end = error_event(error)
            except OSError:
                raise
            # The edge: a bug goes to the log, but not without a word to the client.
            except Exception:
                logger.exception("a stream ended in a bug")
                end = error_event(failed("The server had an error while processing your request."))
        await _send_body(send, end + DONE, more=False)

    async def _write_events(self, send: Send) -> bytes:
        """Write all pieces; returns what is to come before the end."""
        generation, rendering = self._reply.generation, self._reply.rendering
        opening = rendering.opening()
        if opening:
            await _send_body(send, opening, more=True)
        connection = self._connection
        if connection is not None and connection.is_chunked:
            await DirectWriter(generation, rendering, connection).run()
        while generation.num_unfinished:
            events = b"".join(map(rendering.chunk, await generation.next_pieces()))
            if events:
                await _send_body(send, events, more=True)
        return rendering.usage(generation.usage()) if self._reply.include_usage else b""


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
