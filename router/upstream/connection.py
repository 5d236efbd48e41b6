"""One connection to a daemon: a request, the head of its response, and the body as received."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import httptools

from router.upstream.framing import Framing, FramingError, framing_of

MAX_HEAD_BYTES = 64 * 1024

Take = Callable[[bytes], None]


class UpstreamLostError(Exception):
    """The connection failed before the response was complete; the message tells how."""


class UnreachableError(UpstreamLostError):
    """The daemon accepts no connection."""


class NoSocketError(UpstreamLostError):
    """This process could not open a connection, which tells nothing about the daemon."""


class Flow(Protocol):
    """Where a body is passed on to, and whether its reader is behind."""

    @property
    def is_paused(self) -> bool:
        """Whether nothing more should be passed on."""

    async def drain(self) -> None:
        """Wait until more can be passed on."""


class Unlimited:
    """A flow that takes everything."""

    is_paused = False

    async def drain(self) -> None:
        """Return at once."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a response; names of `headers` are in lower case."""

    status: int
    headers: dict[bytes, bytes]


class Upstream(asyncio.Protocol):
    """One connection, for one request at a time.

    The body is passed on within `data_received`, so that no task is woken for a piece of it.
    """

    def __init__(self) -> None:
        self.idle_since = time.monotonic()
        self.head: Head | None = None
        self._transport: asyncio.Transport | None = None
        self._framing: Framing | None = None
        self._headers: dict[bytes, bytes] = {}
        self._received = bytearray()  # until the body is passed on
        self._take: Take | None = None
        self._flow: Flow = Unlimited()
        self._is_waiting = False  # for the flow
        self._has_closed = False
        self._failure: Exception | None = None
        self._take_error: Exception | None = None
        self._changed = asyncio.Event()

    # --- what the owner of the connection calls ---------------------------------------------------

    async def ask(self, request: bytes) -> Head:
        """Send a request and wait for the head of its response. Raises `UpstreamLostError`."""
        self.head, self._framing, self._take = None, None, None
        if self._failure is None and self._transport is not None:
            self._transport.write(request)
        while self.head is None:
            await self._change()
        return self.head

    async def relay(self, take: Take, flow: Flow | None = None) -> None:
        """Pass the pieces of the body to `take` until its end; read no more than `flow` takes.

        Chunked bodies keep their frames. Raises `UpstreamLostError` if the connection fails before
        the end, and what `take` raises.
        """
        assert self._framing is not None
        assert self._transport is not None
        self._take, self._flow = take, flow or Unlimited()
        early = bytes(self._received)
        self._received.clear()
        if early:
            self._pass(early)
        if self._has_closed:
            self._framing.feed_end()
        if not self._is_waiting and not self._transport.is_closing():
            self._transport.resume_reading()
        while not self._framing.has_ended:
            await self._change()
            if self._is_waiting:
                await self._flow.drain()
                self._is_waiting = False
                if not self._transport.is_closing():
                    self._transport.resume_reading()
        self._take = None
        if self._take_error is not None:
            raise self._take_error

    @property
    def has_answered(self) -> bool:
        """Whether a part of the response to the last request was received."""
        return self.head is not None or bool(self._received)

    @property
    def is_chunked(self) -> bool:
        """Whether the body that `relay` passes has the frames of chunks."""
        return self._framing is not None and self._framing.is_chunked

    @property
    def is_closed(self) -> bool:
        """Whether the connection cannot be used any more."""
        return self._transport is None or self._transport.is_closing()

    @property
    def is_reusable(self) -> bool:
        """Whether another request can be sent: the response was read to its end."""
        framing, head = self._framing, self.head
        if framing is None or head is None or self.is_closed or self._failure is not None:
            return False
        keeps = b"close" not in head.headers.get(b"connection", b"").lower()
        return framing.has_ended and not framing.has_surplus and keeps

    def abort(self, reason: str = "the request was given up") -> None:
        """Close the connection at once; whoever waits for it gets `UpstreamLostError`."""
        self._fail(UpstreamLostError(reason))
        if self._transport is not None:
            self._transport.abort()

    # --- what the event loop calls ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Read the head, or pass on a part of the body."""
        if self._take is not None:
            self._pass(data)
            return
        if self._framing is not None and self._framing.has_ended:
            self.abort("it sent more than its answer")
            return
        self._received += data
        if self.head is None:
            try:
                self._read_head()
            except (httptools.HttpParserError, FramingError) as error:
                self.abort(f"its answer is no HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end of the connection: it may be that of the body."""
        self._has_closed = exc is None
        if self._has_closed and self._framing is not None and self._take is not None:
            self._framing.feed_end()
        self._fail(UpstreamLostError(str(exc) if exc else "it closed the connection"))

    # --- httptools --------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self._headers[name.lower()] = value

    # ----------------------------------------------------------------------------------------------

    def _read_head(self) -> None:
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[: end + 4])
            del self._received[: end + 4]
            self._headers = {}
            parser = httptools.HttpResponseParser(self)
            parser.feed_data(head)
            status = parser.get_status_code()
            if status >= 200:  # others come before the response
                self._framing = framing_of(status, self._headers)
                self.head = Head(status, self._headers)
                assert self._transport is not None
                self._transport.pause_reading()  # until the body can be passed on
                self._changed.set()
                return
        if len(self._received) > MAX_HEAD_BYTES:
            self.abort("the head of its answer is too long")

    def _pass(self, data: bytes) -> None:
        """Pass on what is complete, and stop reading if the reader is behind."""
        assert self._framing is not None
        assert self._take is not None
        try:
            if piece := self._framing.feed(data):
                self._take(piece)
        except FramingError as error:
            self.abort(f"its answer is no HTTP: {error}")
            return
        # Raised again in the task that waits for the end.
        except Exception as error:
            self._take_error = error
            self._fail(error)
            return
        if self._framing.has_ended:
            self._changed.set()
        elif self._flow.is_paused and not self._is_waiting:
            self._is_waiting = True
            if self._transport is not None and not self._transport.is_closing():
                self._transport.pause_reading()
            self._changed.set()

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        self._changed.set()

    async def _change(self) -> None:
        """Wait for any change. Raises the failure, unless the body is complete."""
        if self._failure is not None and not (self._framing and self._framing.has_ended):
            raise self._failure
        await self._changed.wait()
        self._changed.clear()
        if self._failure is not None and not (self._framing and self._framing.has_ended):
            raise self._failure
