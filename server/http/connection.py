"""The connection: work that ends when its client disconnects, and direct writes of chunks."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_EXTENSION = "tdpipe.connection"


class Connection:
    """A response that has begun, as uvicorn keeps it: its body in parts, each an HTTP chunk."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def is_paused(self) -> bool:
        """Whether the client reads too slowly; more writes would only fill the buffer."""
        return self._cycle.flow.write_paused

    @property
    def is_chunked(self) -> bool:
        """Whether parts can be written: only chunked encoding ends a body of unknown length."""
        return bool(self._cycle.chunked_encoding)

    def write(self, part: bytes) -> None:
        """Write a part of the body, which is not empty."""
        if not self._cycle.disconnected:
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(part), part))

    async def drain(self) -> None:
        """Wait until it is not paused; a client that disconnects cancels the wait."""
        await self._cycle.flow.drain()


class WithConnection:
    """The outermost ASGI layer: adds the connection to the request's scope."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
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
    """The connection, where the server is uvicorn with `WithConnection`."""
    extensions: dict[str, Any] = scope.get("extensions") or {}
    return extensions.get(_EXTENSION)


async def run_while_connected(work: Coroutine[None, None, None], receive: Receive) -> bool:
    """Run `work` to its end, or cancel it when the client disconnects; False if it did.

    The work is cancelled wherever it waits, inside the sending of a chunk too. Raises what the work
    raises.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnection(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait((working, leaving))
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
