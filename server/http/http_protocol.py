"""The HTTP protocol: uvicorn's, bounded: a head's length and time, the time that nothing is read.

Its errors are in the envelope.
"""

import asyncio
import logging
import uuid

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.http.errors import ApiError

# As much as nginx takes; the parser itself has no bound.
MAX_HEAD_BYTES = 32 * 1024
# From the connection, or a request's first byte, to the end of the request's head.
HEAD_TIMEOUT_S = 60.0
LOOK_S = 1.0

logger = logging.getLogger("tdpipe")


class BoundedHttp(HttpToolsProtocol):
    """One connection. A head that is too long gets 431, one that does not come 408."""

    # Of the present head: in the parts that are whole, and as they came.
    _num_parsed_bytes = 0
    _num_received_bytes = 0
    _has_begun = False  # a request has, at least once
    _in_head = True
    _num_heads = 0  # that have come whole
    _deadline: asyncio.TimerHandle | None = None
    # Bytes that are left for the client, and how often they were looked at since they became fewer.
    _num_unread = 0
    _num_looks = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give it time for its first request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse. The parser keeps a part that has no end yet, so what comes is counted too."""
        self._has_begun = True
        num_heads = self._num_heads
        super().data_received(data)
        if self._in_head and num_heads == self._num_heads:
            self._num_received_bytes += len(data)
            if self._num_received_bytes > MAX_HEAD_BYTES:
                self._refuse(_too_long())

    def check_reads(self, timeout_s: float) -> None:
        """Hang up on a client that has read nothing for so long; to be called every `LOOK_S`.

        Only where it is waited for: what is there for it fills the buffer, or is the last. So
        nothing is added meanwhile, and each byte that it takes is seen. Time is counted in looks:
        a machine that stood still blames nobody.
        """
        is_awaited = self.flow.write_paused or self.transport.is_closing()
        num_unread = self.transport.get_write_buffer_size() if is_awaited else 0
        if not num_unread or num_unread != self._num_unread:
            self._num_unread, self._num_looks = num_unread, 0
            return
        self._num_looks += 1
        if self._num_looks * LOOK_S >= timeout_s:
            logger.info("a client has read nothing for %g s: its connection is cut", timeout_s)
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._expect_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """The target, or a part of it."""
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One whole header."""
        self._count(name + value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        self._num_heads += 1
        self._stop_clock()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What could not be parsed; it may be ours that stopped the parser."""
        too_long = self._num_parsed_bytes > MAX_HEAD_BYTES
        self._refuse(_too_long() if too_long else ApiError(400, msg, code="invalid_http"))

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: a server may go on without the upgrade (RFC 9110, 7.8), and clients offer it."""

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
        """Answer outside of the app, and hang up.

        It has not heard of the request, or its client is gone for it in the midst of a body. There
        is no answer to a connection without any request, and none in the midst of another's.
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
        """Whether the present request's body is on its way, and nothing of its answer."""
        cycle = self.cycle
        return (
            cycle is not None
            and cycle.more_body
            and not cycle.response_started
            and not self.pipeline  # in which it would wait behind another
        )


def _too_long() -> ApiError:
    message = f"The request's head is too long: at most {MAX_HEAD_BYTES} bytes are accepted."
    return ApiError(431, message, code="request_head_too_large")


def _too_slow() -> ApiError:
    message = f"The request's head did not come within {HEAD_TIMEOUT_S:g} seconds."
    return ApiError(408, message, code="request_timeout")
