"""The pool of connections to one daemon: a connection is kept for the next request."""

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from router.upstream.address import Address
from router.upstream.connection import (
    NoSocketError,
    UnreachableError,
    Upstream,
    UpstreamLostError,
)

MAX_IDLE = 64
MAX_IDLE_S = 20.0
"""A daemon closes idle connections itself, but later (`server.http.listener.KEEP_ALIVE_S`)."""
# Descriptors, memory or local ports are short here.
_OWN_TROUBLE = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)


class Pool:
    """Connections to one daemon. Raises `ValueError` for https:// without a TLS context."""

    def __init__(
        self, address: Address, connect_timeout_s: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self.address = address
        self._connect_timeout_s = connect_timeout_s
        if address.is_secure and tls is None:
            raise ValueError("https:// needs a TLS context: the request would be sent in the clear")
        self._tls = tls if address.is_secure else None
        self._idle: list[Upstream] = []

    @asynccontextmanager
    async def asked(
        self, request: bytes, on_connection: Callable[[Upstream], None] = lambda _: None
    ) -> AsyncIterator[Upstream]:
        """Send a request; the block gets the connection when the head of the response is there.

        A kept connection that the daemon has just closed is replaced by a new one. `on_connection`
        gets each connection before the request is sent. Leaving the block before the end of the
        body closes the connection, which ends the request at the daemon. Raises
        `UpstreamLostError`, in particular `UnreachableError` and `NoSocketError`.
        """
        upstream = await self._ask(request, on_connection)
        try:
            yield upstream
        finally:
            if upstream.is_reusable and len(self._idle) < MAX_IDLE:
                upstream.idle_since = time.monotonic()
                self._idle.append(upstream)
            else:
                upstream.abort()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().abort()

    async def _ask(self, request: bytes, on_connection: Callable[[Upstream], None]) -> Upstream:
        kept = self._take_idle()
        if kept is not None:
            try:
                on_connection(kept)
                return await self._asked(kept, request)
            except UpstreamLostError:
                if kept.has_answered:
                    raise
        upstream = await self._connect()
        on_connection(upstream)
        return await self._asked(upstream, request)

    @staticmethod
    async def _asked(upstream: Upstream, request: bytes) -> Upstream:
        try:
            await upstream.ask(request)
        except BaseException:
            upstream.abort()
            raise
        return upstream

    def _take_idle(self) -> Upstream | None:
        """The connection that was used last; those that are idle for long are closed."""
        oldest = time.monotonic() - MAX_IDLE_S
        while self._idle:
            upstream = self._idle.pop()
            if upstream.is_closed:
                continue
            if upstream.idle_since >= oldest:
                return upstream
            upstream.abort()
        return None

    async def _connect(self) -> Upstream:
        address = self.address
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, upstream = await loop.create_connection(
                    Upstream, address.host, address.port, ssl=self._tls
                )
        except TimeoutError:
            message = f"it accepted no connection within {self._connect_timeout_s:g} s"
            raise UnreachableError(message) from None
        except UnicodeError as error:  # of a name that IDNA forbids
            raise UnreachableError(f"{address.host} is no name of a host") from error
        except OSError as error:  # also those of TLS and of names
            raise failure_of(error) from error
        return upstream


def failure_of(error: OSError) -> UpstreamLostError:
    """What a connection that could not be opened tells about the daemon."""
    message = error.strerror or str(error)
    own_trouble = {socket.EAI_AGAIN} if isinstance(error, socket.gaierror) else _OWN_TROUBLE
    if error.errno in own_trouble:
        return NoSocketError(f"the router cannot connect: {message}")
    return UnreachableError(message)
