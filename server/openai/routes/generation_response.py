"""The generation response: prepares a request and writes its answer, whole or as a stream.

The response ends when the client disconnects. A stream that has begun ends with the events of its
rendering, unless the client has disconnected.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.http.connection import Connection, connection_of, run_while_connected
from server.http.drain import Drain
from server.http.errors import ApiError, failed
from server.http.request_record import RequestRecord, record_of
from server.metrics import Metrics
from server.openai.rendering.sse import HEADERS, send_body, write_events
from server.openai.routes.endpoint import Endpoint
from server.openai.routes.request_log import log_request
from server.requests.generation import Generation
from server.requests.monitoring.request_trace import RequestTrace
from server.requests.reply import Reply

# The tokens of the request's prompts, by which a router learns how many bytes a token has.
PROMPT_TOKENS = b"x-tdpipe-prompt-tokens"

logger = logging.getLogger("tdpipe")


class GenerationResponse(Response):
    """The response of an endpoint to one body.

    `body_memory` is released once the request is prepared, because the body is no longer needed.
    Raises `ApiError` if nothing has been sent yet: the request was refused, or a whole answer could
    not be completed.
    """

    def __init__(
        self,
        endpoint: Endpoint[Any],
        body: bytes,
        body_memory: AsyncExitStack,
        metrics: Metrics,
        drain: Drain,
        *,
        log_requests: bool,
        comment_interval_s: float,
        resumable: bool = False,
        trace: RequestTrace | None = None,
    ) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._request: tuple[bytes, AsyncExitStack] | None = (body, body_memory)
        self._metrics = metrics
        self._drain = drain
        self._log_requests = log_requests
        self._comment_interval_s = comment_interval_s
        self._resumable, self._trace = resumable, trace
        self._outcome = "error"
        self._generation: Generation | None = None  # None if the request was refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the response, unless the client disconnects."""
        assert scope["type"] == "http"
        with self._drain.request(), self._recorded(record_of(scope)):
            if not await run_while_connected(self._answer(scope, send), receive):
                self._outcome = "disconnect"

    @contextmanager
    def _recorded(self, record: RequestRecord) -> Iterator[None]:
        try:
            yield
        except ApiError as error:
            self._outcome = self._metrics.count_reason(error)
            raise
        finally:
            self._metrics.requests.labels(self._outcome).inc()
            record.outcome = "" if self._outcome == "success" else self._outcome
            if self._generation is not None:
                self._record_tokens(record, self._generation)

    def _record_tokens(self, record: RequestRecord, generation: Generation) -> None:
        self._metrics.request_duration.observe(time.monotonic() - generation.arrived_at)
        usage = generation.usage()
        record.num_prompt_tokens = usage["prompt_tokens"]
        record.num_output_tokens = usage["completion_tokens"]
        record.first_token_at = generation.first_token_at

    async def _answer(self, scope: Scope, send: Send) -> None:
        try:
            reply = await self._prepare()
        except OSError as error:  # not from `send`: there it means that the client disconnected
            raise RuntimeError("a request could not be prepared") from error
        self._generation = reply.generation
        reply.generation.trace = self._trace
        if self._trace is not None:
            self._trace.replied(reply.rendering.reply_id, stream=reply.stream)
        if self._log_requests:
            log_request(reply, scope["state"]["request_id"])
        if reply.stream:
            await self._write_stream(reply, connection_of(scope), send)
        else:
            await self._write_whole(reply, send)

    async def _prepare(self) -> Reply:
        request, self._request = self._request, None
        assert request is not None, "an answer is given once"
        body, body_memory = request
        async with body_memory:
            self._drain.check()
            return await self._endpoint.prepare(body, resumable=self._resumable)

    async def _write_whole(self, reply: Reply, send: Send) -> None:
        body = await reply.whole()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            _prompt_tokens(reply),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send_body(send, body, more=False)
        self._outcome = "success"

    async def _write_stream(self, reply: Reply, connection: Connection | None, send: Send) -> None:
        async with reply.generation:
            headers = [*HEADERS, _prompt_tokens(reply)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            try:
                async with reply.deadline.kept():
                    end = await write_events(reply, connection, send, self._comment_interval_s)
                self._outcome = "success"
            except ApiError as error:
                self._outcome = "timeout" if error.status == 408 else "error"
                goes_on = reply.generation.plan.resumable and not error.is_final
                if connection is not None and goes_on:
                    connection.cut()  # the router takes the stream to another daemon
                    return
                end = reply.rendering.failure(error)
            except OSError:
                raise
            # A bug is logged, and the client receives an error event.
            except Exception:
                logger.exception("a stream ended in a bug")
                bug = failed("The server had an error while processing your request.")
                end = reply.rendering.failure(bug)
        await send_body(send, end, more=False)


def _prompt_tokens(reply: Reply) -> tuple[bytes, bytes]:
    prompts = reply.generation.plan.prompts
    return PROMPT_TOKENS, str(sum(map(len, prompts))).encode()
