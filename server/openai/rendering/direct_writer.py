"""The direct writer: a stream's events go to its connection in the turn in which tokens arrive.

Waking a task for each token of each stream and handing every event through the layers of an ASGI
application costs more than all else that is done for a token. So the receiver of a burst of tokens
calls the streams' writers one after the other. The task of a stream sleeps until there is something
to wait for: its end, or a client that reads too slowly.
"""

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from server.requests.generation import Generation, Piece, num_logprobs, takes_long
from server.requests.reply import Rendering

_EXTENSION = "tdpipe.connection"


class Connection:
    """A response that has begun, as uvicorn keeps it: its body in parts, each a chunk of HTTP."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def is_paused(self) -> bool:
        """Whether the client reads too slowly; what is written now would only pile up."""
        return self._cycle.flow.write_paused

    @property
    def is_chunked(self) -> bool:
        """Whether parts can be written; HTTP has no other way to end a body of unknown length."""
        return bool(self._cycle.chunked_encoding)

    def write(self, part: bytes) -> None:
        """Write a part of the body, which is not empty."""
        if not self._cycle.disconnected:
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(part), part))

    async def drain(self) -> None:
        """Wait until it is not paused; a client that leaves cancels the wait."""
        await self._cycle.flow.drain()


class WithConnection:
    """The outermost ASGI layer: adds the connection to the request's scope."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on."""
        cycle = getattr(send, "__self__", None)
        if not isinstance(cycle, RequestResponseCycle):
            return await self._app(scope, receive, send)
        extensions = scope.setdefault("extensions", {})
        extensions[_EXTENSION] = Connection(cycle)
        try:
            await self._app(scope, receive, send)
        finally:
            # The cycle keeps the scope: both would wait for the garbage collector.
            del extensions[_EXTENSION]


def connection_of(scope: Scope) -> Connection | None:
    """The connection, where the server is one that has it."""
    extensions: dict[str, Any] = scope.get("extensions") or {}
    return extensions.get(_EXTENSION)


def events_of(rendering: Rendering, pieces: Iterable[Piece]) -> bytes:
    """The events of all pieces."""
    return b"".join(map(rendering.chunk, pieces))


class DirectWriter:
    """Writes one generation's pieces to a connection whose response has begun.

    Pieces that take long to be rendered, and what comes after them, are the stream's own task's.
    """

    def __init__(
        self, generation: Generation, rendering: Rendering, connection: Connection
    ) -> None:
        self._generation, self._rendering, self._connection = generation, rendering, connection
        self._news = asyncio.Event()
        self._error: Exception | None = None
        self._long: list[Piece] = []

    async def run(self) -> None:
        """Until the generation's end. Raises what `Generation.take_pieces` does."""
        self._generation.listen(self._hear)
        try:
            self._hear()  # something may have come before
            while self._generation.num_unfinished or self._long:
                await self._news.wait()
                self._news.clear()
                if self._error is not None:
                    raise self._error
                await self._connection.drain()
                if self._long:
                    await self._write_long()
                else:
                    self._write()
        finally:
            # After the stream the connection is another request's.
            self._generation.listen(None)

    def _hear(self) -> None:
        """There are new tokens, or an end."""
        if not self._connection.is_paused and not self._long:
            try:
                self._write()
            # Raised again in the stream's own task, where it can be answered.
            except Exception as error:
                self._error = error
        if self._error or self._connection.is_paused or self._generation.has_ended:
            self._news.set()

    def _write(self) -> None:
        pieces = self._generation.take_pieces()
        if takes_long(num_logprobs(pieces)):
            self._long = pieces
            self._news.set()
        elif events := events_of(self._rendering, pieces):
            self._connection.write(events)

    async def _write_long(self) -> None:
        work = partial(events_of, self._rendering, self._long)
        if events := await self._generation.render(num_logprobs(self._long), work):
            self._connection.write(events)
        self._long = []
        self._news.set()  # something may have come meanwhile
