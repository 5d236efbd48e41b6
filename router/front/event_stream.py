"""An event stream on its way to a client: chunks are written as they come, and kept for resumption.

The bytes of all streams that are kept have a common limit; a stream beyond it cannot be resumed.
"""

import time
from collections.abc import Callable

from router.monitoring.metrics import Metrics
from router.upstream.framing import payload
from server.http.connection import Connection

# A daemon writes comments while a stream waits, and announces a response, before any token.
_WITHOUT_TOKENS = (b":", b"event: response.created\n", b"event: response.in_progress\n")
_ERRORS = (b'data: {"error":', b"event: error\n", b"event: response.failed\n")


class KeptMemory:
    """The memory for the events of open streams."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes, self._gauge = max_bytes, metrics.kept_bytes
        self.num_bytes = 0

    def take(self, num_bytes: int) -> bool:
        """Reserve memory, unless the limit is reached."""
        if self.num_bytes + num_bytes > self._max_bytes:
            return False
        self.num_bytes += num_bytes
        return True

    def free(self, num_bytes: int) -> None:
        """Return memory."""
        self.num_bytes -= num_bytes

    def show(self) -> None:
        """Update the gauge; for the page of metrics."""
        self._gauge.set(self.num_bytes)


class EventStream:
    """The stream of one request, from whichever instances its parts come.

    `on_begin` is called before its first token is passed on, at `began_at` (monotonic seconds). It
    `has_begun` when anything was passed on.
    """

    def __init__(
        self, connection: Connection, memory: KeptMemory, on_begin: Callable[[], None]
    ) -> None:
        self._connection, self._memory, self._on_begin = connection, memory, on_begin
        self._kept: list[bytes] = []
        self._num_kept = 0
        self._last = self._before_last = b""
        self.is_kept = True
        self.has_begun = False
        self.began_at: float | None = None

    def take(self, chunks: bytes) -> None:
        """Pass whole chunks on."""
        self.has_begun = True
        if self.began_at is None and _has_tokens(payload(chunks)):
            self.began_at = time.monotonic()
            self._on_begin()
        self._before_last, self._last = self._last, chunks
        connection = self._connection
        connection.write_framed(chunks if connection.is_chunked else payload(chunks))
        if self.is_kept:
            if self._memory.take(len(chunks)):
                self._num_kept += len(chunks)
                self._kept.append(chunks)
            else:
                self.close()

    @property
    def is_cut(self) -> bool:
        """Whether the client has got a part of an event only."""
        return self.has_begun and not self._last.endswith(b"\n\n\r\n")

    @property
    def has_failed(self) -> bool:
        """Whether it ends with the event of an error, which the daemon has written."""
        events = payload(self._before_last + self._last).split(b"\n\n")
        return any(event.startswith(_ERRORS) for event in events)

    def events(self) -> bytes:
        """What the client has got, if it `is_kept`."""
        return payload(b"".join(self._kept))

    def close(self) -> None:
        """Free the memory."""
        self._memory.free(self._num_kept)
        self._kept, self._num_kept, self.is_kept = [], 0, False


def _has_tokens(events: bytes) -> bool:
    each = filter(None, events.split(b"\n\n"))
    return any(not event.startswith(_WITHOUT_TOKENS) for event in each)
