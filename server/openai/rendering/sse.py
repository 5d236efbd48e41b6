"""Server-sent events: the frame of a stream's events, and the sink that writes them.

Waking a task for each token of each stream, and passing every event through the layers of an ASGI
application, costs more than the rest of the work for a token. So if the connection allows it, the
receiver of a burst of tokens calls the writers of the streams one after the other
(`server.requests.output_coalescing`), and each of them immediately writes its events to its
connection. The task of a stream sleeps until the stream ends or the client reads too slowly.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import msgspec
from starlette.types import Send

from server.http.connection import Connection
from server.http.errors import ApiError
from server.requests.generation import Generation, Piece, num_logprobs, takes_long
from server.requests.reply import Rendering, Reply

DONE = b"data: [DONE]\n\n"
# Parsers of server-sent events ignore comments; proxies take them for activity.
COMMENT = b": waiting\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_encode = msgspec.json.Encoder().encode


class EventFrame:
    """The part that all events of a stream have in common, encoded only once to save CPU time.

    `around_text` is the JSON before and after the text of a choice that has no other fields.
    """

    def __init__(
        self, head: dict[str, Any], around_text: tuple[bytes, bytes], *, include_usage: bool
    ) -> None:
        self._include_usage = include_usage
        self._prefix = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._suffix = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._before_text, after_text = around_text
        self._after_tokens = b',"logprobs":null,"finish_reason":null}' + self._suffix
        self._after_text = after_text + self._after_tokens
        self._before_tokens = after_text + b',"token_ids":'

    def text(self, index: int, text: str) -> bytes:
        """Return the event for new text only; most events are of this kind, so it is fast."""
        return b'%b{"index":%d,%b%b%b' % (
            self._prefix,
            index,
            self._before_text,
            _encode(text),
            self._after_text,
        )

    def covering_text(self, index: int, text: str, token_ids: Sequence[int]) -> bytes:
        """Return the event for new text and the tokens that it covers, as fast as `text`."""
        return b'%b{"index":%d,%b%b%b%b%b' % (
            self._prefix,
            index,
            self._before_text,
            _encode(text),
            self._before_tokens,
            _encode(token_ids),
            self._after_tokens,
        )

    def choice(
        self,
        choice: dict[str, Any],
        beside: dict[str, Any] | None = None,
        *,
        usage: dict[str, Any] | None = None,
    ) -> bytes:
        """Return the event of a choice, with the fields `beside` next to the choices."""
        suffix = self._suffix
        if usage is not None:
            suffix = b'],"usage":' + _encode(usage) + b"}\n\n"
        if not beside:
            return self._prefix + _encode(choice) + suffix
        return self._prefix + _encode(choice) + b"]," + _encode(beside)[1:-1] + suffix[1:]

    def no_choice(self, fields: dict[str, Any]) -> bytes:
        """Return an event without choices, such as the usage."""
        return self._prefix + b"]," + _encode(fields)[1:] + b"\n\n"

    def closing(self, usage: dict[str, Any]) -> bytes:
        """Return the events after the last choice: the usage, if it was asked for, and the end."""
        return (self.no_choice({"usage": usage}) if self._include_usage else b"") + DONE


def failure(error: ApiError) -> bytes:
    """Return the events for a failure after a stream of choices has begun."""
    return b"data: " + error.body() + b"\n\n" + DONE


async def write_events(
    reply: Reply, connection: Connection | None, send: Send, comment_interval_s: float
) -> bytes:
    """Write the events of all pieces; return the last events, which the caller must write.

    While nothing else is written, a comment is written every `comment_interval_s`; 0: never. Raises
    the `ApiError` of the generation. Without a chunked `connection`, events are sent one by one
    through ASGI.
    """
    generation, rendering = reply.generation, reply.rendering
    if opening := rendering.opening():
        await send_body(send, opening, more=True)
    if connection is not None and connection.is_chunked:
        await DirectWriter(generation, rendering, connection, comment_interval_s).run()
    else:
        await _write_each(generation, rendering, send, comment_interval_s)
    return rendering.closing(generation.usage())


async def _write_each(
    generation: Generation, rendering: Rendering, send: Send, comment_interval_s: float
) -> None:
    while generation.num_unfinished:
        try:
            async with asyncio.timeout(comment_interval_s or None):
                await generation.wait()
        except TimeoutError:
            await send_body(send, COMMENT, more=True)
            continue
        for piece in generation.take_pieces():
            event = await generation.render(piece.num_logprobs, partial(rendering.chunk, piece))
            if event:
                await send_body(send, event, more=True)


async def send_body(send: Send, body: bytes, *, more: bool) -> None:
    """Send a part of a response's body through ASGI."""
    await send({"type": "http.response.body", "body": body, "more_body": more})


class DirectWriter:
    """Writes one generation's pieces to a connection whose response has begun.

    Pieces that take long to render, and those after them, are written by the stream's own task.
    """

    def __init__(
        self,
        generation: Generation,
        rendering: Rendering,
        connection: Connection,
        comment_interval_s: float = 0.0,
    ) -> None:
        self._generation, self._rendering, self._connection = generation, rendering, connection
        self._comment_interval_s = comment_interval_s
        self._wrote_at = time.monotonic()
        self._wake = asyncio.Event()
        self._error: Exception | None = None
        self._long: list[Piece] = []

    async def run(self) -> None:
        """Write until the generation's end. Raises what `Generation.take_pieces` raises."""
        self._generation.listen(self._on_output)
        try:
            self._on_output()  # output may have arrived before
            while self._generation.num_unfinished or self._long:
                if not await self._is_woken():
                    continue
                self._wake.clear()
                if self._error is not None:
                    raise self._error
                await self._connection.drain()
                if self._long:
                    await self._write_long()
                else:
                    self._write()
        finally:
            # After the stream, another request may use the connection.
            self._generation.listen(None)

    async def _is_woken(self) -> bool:
        """Wait to be woken; return False after a comment instead.

        The timer is not restarted for each event; it is compared with the time of the last one.
        """
        pause_s = None
        if self._comment_interval_s:
            pause_s = self._wrote_at + self._comment_interval_s - time.monotonic()
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            is_due = time.monotonic() >= self._wrote_at + self._comment_interval_s
            if is_due and self._connection.is_paused:
                self._wrote_at = time.monotonic()  # the client has enough to read
            elif is_due:
                self._put(COMMENT)
            return False
        return True

    def _put(self, events: bytes) -> None:
        self._wrote_at = time.monotonic()
        self._connection.write(events)

    def _on_output(self) -> None:
        """Handle new tokens or an end."""
        if not self._connection.is_paused and not self._long:
            try:
                self._write()
            # Raised again in the stream's own task, which can send an error event.
            except Exception as error:
                self._error = error
        if self._error or self._connection.is_paused or self._generation.has_ended:
            self._wake.set()

    def _write(self) -> None:
        pieces = self._generation.take_pieces()
        if takes_long(num_logprobs(pieces)):
            self._long = pieces
            self._wake.set()
        elif events := _events_of(self._rendering, pieces):
            self._put(events)

    async def _write_long(self) -> None:
        work = partial(_events_of, self._rendering, self._long)
        if events := await self._generation.render(num_logprobs(self._long), work):
            self._put(events)
        self._long = []
        self._wake.set()  # output may have arrived meanwhile


def _events_of(rendering: Rendering, pieces: Iterable[Piece]) -> bytes:
    return b"".join(map(rendering.chunk, pieces))
