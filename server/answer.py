"""The answer: one generation written to its client, whole or as a stream of events.

It lives as long as its client stays; a stream that has begun ends in `[DONE]` or with the client.
"""

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.connection import run_while_connected
from server.drain import Drain
from server.errors import ApiError, failed
from server.event_stream import DONE, HEADERS, CompletionEvents, error_event
from server.generation import Generation, Piece
from server.metrics import Metrics
from server.protocol import CompletionRequest

logger = logging.getLogger("tdpipe")


class Answer(Response):
    """The answer to one completion request; `echoes` holds a text to put before each choice.

    Raises `ApiError` while nothing has been sent: the request was not admitted, or a whole answer
    could not be completed.
    """

    def __init__(
        self,
        request: CompletionRequest,
        generation: Generation,
        echoes: list[str],
        metrics: Metrics,
        drain: Drain,
    ) -> None:
        super().__init__()
        self._request = request
        self._generation = generation
        self._metrics = metrics
        self._drain = drain
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._outcome = "error"
        self._first_pieces = _first_pieces(generation, echoes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write it, unless the client goes away."""
        assert scope["type"] == "http"
        write = self._write_stream if self._request.stream else self._write_whole
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
            seconds = time.monotonic() - self._generation.arrived_at
            self._metrics.requests.labels(self._outcome).inc()
            self._metrics.request_duration.observe(seconds)

    async def _write_whole(self, send: Send) -> None:
        async with self._generation as generation:
            texts = [""] * generation.num_choices
            reasons: list[str | None] = [None] * generation.num_choices
            pieces = self._first_pieces
            while True:
                for index, text, reason in pieces:
                    texts[index] += text
                    reasons[index] = reason
                if not generation.num_unfinished:
                    break
                pieces = await generation.next_pieces()
        body = self._encode_whole(texts, reasons)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", self._id.encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _send_body(send, body, more=False)
        self._outcome = "success"

    def _encode_whole(self, texts: list[str], reasons: list[str | None]) -> bytes:
        choices = [
            {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return msgspec.json.encode(
            {
                "id": self._id,
                "object": "text_completion",
                "created": self._created,
                "model": self._request.model,
                "choices": choices,
                "usage": self._generation.usage(),
            }
        )

    async def _write_stream(self, send: Send) -> None:
        async with self._generation as generation:
            headers = [*HEADERS, (b"x-request-id", self._id.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            try:
                end = await self._write_events(generation, send)
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

    async def _write_events(self, generation: Generation, send: Send) -> bytes:
        """Write all pieces; returns what is to come before the end."""
        options = self._request.stream_options
        with_usage = options is not None and options.include_usage
        events = CompletionEvents(
            self._id, self._created, self._request.model, with_usage=with_usage
        )
        pieces = self._first_pieces
        while True:
            if pieces:
                await _send_body(send, b"".join(map(events.chunk, pieces)), more=True)
            if not generation.num_unfinished:
                return events.usage(generation.usage()) if with_usage else b""
            pieces = await generation.next_pieces()


def _first_pieces(generation: Generation, echoes: list[str]) -> list[Piece]:
    """What is known without the engine: the echoes, or all where no token is asked for."""
    if generation.num_unfinished:
        return [Piece(index, text, None) for index, text in enumerate(echoes)]
    texts = echoes or [""] * generation.num_choices
    return [Piece(index, text, "length") for index, text in enumerate(texts)]


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
