"""uvicorn's HTTP protocol with limits for the size and time of request heads and for slow readers.

Errors have OpenAI's error body.
"""

import asyncio
import logging
import uuid

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.http.errors import ApiError

# The same limit as in nginx; the parser itself has none.
MAX_HEAD_BYTES = 32 * 1024
# From the connection's start, or a request's first byte, to the end of the request's head.
HEAD_TIMEOUT_S = 60.0
CHECK_INTERVAL_S = 1.0

logger = logging.getLogger("tdpipe")


class BoundedHttp(HttpToolsProtocol):
    """One connection. It answers a head that is too long with 431, and a late one with 408."""

    # Of the current head: bytes in complete parts, and bytes as received.
    _num_parsed_bytes = 0
    _num_received_bytes = 0
    _has_begun = False  # whether any request has begun
    _in_head = True
    _num_heads = 0  # received completely
    _deadline: asyncio.TimerHandle | None = None
    # Bytes that the client has not read yet, and the checks since their number last changed.
    _num_unread = 0
    _num_checks = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout of the first request's head."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeout."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data. The parser buffers incomplete parts, so received bytes are counted too."""
        self._has_begun = True
        num_heads = self._num_heads
        super().data_received(data)
        if self._in_head and num_heads == self._num_heads:
            self._num_received_bytes += len(data)
            if self._num_received_bytes > MAX_HEAD_BYTES:
                self._refuse(_too_long())

    def check_reads(self, timeout_s: float) -> None:
        """Abort the connection of a client that has read nothing for `timeout_s`.

        It must be called every `CHECK_INTERVAL_S`. A connection is checked only if the server waits
        for the client: its buffer is full, or contains the end of the last response. As the server
        adds nothing then, any read of the client changes the number of unread bytes. Time is
        measured in checks, so that time in which the machine was suspended does not count.
        """
        is_awaited = self.flow.write_paused or self.transport.is_closing()
        num_unread = self.transport.get_write_buffer_size() if is_awaited else 0
        if not num_unread or num_unread != self._num_unread:
            self._num_unread, self._num_checks = num_unread, 0
            return
        self._num_checks += 1
        if self._num_checks * CHECK_INTERVAL_S >= timeout_s:
            logger.info("aborting a connection: the client has read nothing for %g s", timeout_s)
            self.transport.abort()

    def on_message_begin(self) -> None:
        """Start the limits of a new request's head."""
        self._expect_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the bytes of the request target, or of a part of it."""
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the bytes of one complete header."""
        self._count(name + value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the timeout: the head is complete."""
        self._in_head = False
        self._num_heads += 1
        self._stop_clock()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that cannot be parsed, or whose head is too long."""
        too_long = self._num_parsed_bytes > MAX_HEAD_BYTES
        self._refuse(_too_long() if too_long else ApiError(400, msg, code="invalid_http"))

    def _unsupported_upgrade_warning(self) -> None:
        """Do not warn: clients offer upgrades, and a server may ignore them (RFC 9110, 7.8)."""

    def _count(self, part: bytes) -> None:
        self._num_parsed_bytes += len(part)
        if self._num_parsed_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head is too long")  # the parser stops

    def _expect_head(self) -> None:
        self._stop_clock()
        self._in_head, self._num_parsed_bytes, self._num_received_bytes = True, 0, 0
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, _too_slow())

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, error: ApiError) -> None:
        """Answer without the app, and close the connection.

        Either the app has not seen the request yet, or it is reading the body and receives a
        disconnect of the client. If no request has begun, or if another response is being sent, the
        connection is closed without an answer.
        """
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if self._is_reading_body():
            cycle.disconnected = True
            cycle.message_event.set()
        is_answering = not (cycle is None or cycle.response_complete or cycle.disconnected)
        if self._has_begun and not is_answering:
            body = error.body()
            head = (
                b"content-type: application/json\r\n"
                b"content-length: %d\r\n"
                b"x-request-id: %s\r\n"
                b"connection: close\r\n\r\n" % (len(body), uuid.uuid4().hex.encode())
            )
            self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()

    def _is_reading_body(self) -> bool:
        """Whether the current request's body is being received and its response has not begun."""
        cycle = self.cycle
        return (
            cycle is not None
            and cycle.more_body
            and not cycle.response_started
            and not self.pipeline  # a pipelined request waits for the one before it
        )


def _too_long() -> ApiError:
    message = f"The request's head is too long: at most {MAX_HEAD_BYTES} bytes are accepted."
    return ApiError(431, message, code="request_head_too_large")


def _too_slow() -> ApiError:
    message = f"The request's head was not received within {HEAD_TIMEOUT_S:g} seconds."
    return ApiError(408, message, code="request_timeout")
