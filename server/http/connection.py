"""The connection: cancels work when its client disconnects, and writes HTTP chunks directly."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_EXTENSION = "tdpipe.connection"


class Connection:
    """The connection of a response that has begun, in uvicorn; each write is one HTTP chunk."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def is_paused(self) -> bool:
        """Whether the client reads too slowly; more writes would only fill the buffer."""
        return self._cycle.flow.write_paused

    @property
    def is_disconnected(self) -> bool:
        """Whether the client has left before the end of the response."""
        return self._cycle.disconnected

    @property
    def is_chunked(self) -> bool:
        """Whether `write` can be used: it needs chunked encoding, as the length is not known."""
        return bool(self._cycle.chunked_encoding)

    def write(self, part: bytes) -> None:
        """Write a part of the body; it must not be empty."""
        if not self._cycle.disconnected:
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(part), part))

    def write_framed(self, part: bytes) -> None:
        """Write a part of the body that is framed already: whole chunks, if `is_chunked`.

        Otherwise the client speaks HTTP/1.0, and the end of the connection ends the body.
        """
        if not self._cycle.disconnected:
            self._cycle.transport.write(part)

    def cut(self) -> None:
        """Close the connection in the middle of the response: the client sees that it is not whole.

        What was written before is still sent.
        """
        self._cycle.disconnected = True  # as uvicorn finds a moment later, or it would log an error
        self._cycle.transport.close()

    async def drain(self) -> None:
        """Wait until the connection is not paused; a disconnect of the client ends the wait."""
        await self._cycle.flow.drain()


class WithConnection:
    """The outermost ASGI layer: adds the connection to the request's scope."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application with the connection in the scope."""
        cycle = getattr(send, "__self__", None)
        if not isinstance(cycle, RequestResponseCycle):
            return await self._app(scope, receive, send)
        if scope["http_version"] == "1.0":
            send = _CloseDelimited(cycle).send
        extensions = scope.setdefault("extensions", {})
        extensions[_EXTENSION] = Connection(cycle)
        try:
            await self._app(scope, receive, send)
        finally:
            # The cycle refers to the scope: without this, only the garbage collector frees them.
            del extensions[_EXTENSION]


class _CloseDelimited:
    """Sends a response of unknown length to an HTTP/1.0 client, which knows no chunked encoding.

    The end of the connection ends the body (RFC 9112, 6.3), which uvicorn does not implement.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._is_active = False

    async def send(self, message: Any) -> None:
        """Replace the cycle's `send`."""
        cycle = self._cycle
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            if b"content-length" not in names:
                self._is_active, cycle.chunked_encoding = True, False
        elif self._is_active:
            body = message.get("body", b"")
            if body and not cycle.disconnected and cycle.scope["method"] != "HEAD":
                cycle.transport.write(body)
            message = {**message, "body": b""}
        await cycle.send(message)


def connection_of(scope: Scope) -> Connection | None:
    """The connection, or None if the server is not uvicorn with `WithConnection`."""
    extensions: dict[str, Any] = scope.get("extensions") or {}
    return extensions.get(_EXTENSION)


async def run_while_connected(work: Coroutine[None, None, None], receive: Receive) -> bool:
    """Run `work` to its end, or cancel it when the client disconnects, and then return False.

    The work is cancelled at any point where it waits, even while it sends a chunk. Exceptions of
    the work are raised here.
    """
    working = asyncio.ensure_future(work)
    disconnecting = asyncio.ensure_future(_disconnection(receive))
    try:
        await asyncio.wait((working, disconnecting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        disconnecting.cancel()
        working.cancel()
        await asyncio.wait((working, disconnecting))
    if working.cancelled():
        return False
    try:
        working.result()
    except (OSError, ClientDisconnect):
        return False
    return True


async def _disconnection(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
