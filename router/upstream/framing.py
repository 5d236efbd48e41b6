"""The framing of HTTP/1.1 bodies (RFC 9112, section 6), found without a look into the body.

`feed` takes what was received and returns what can be passed on: for a chunked body whole chunks
only, as they were received, so that what a client has got always ends between two chunks.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

MAX_CHUNK_BYTES = 16 * 1024 * 1024
"""Of one chunk, which is held back until it is complete. A daemon writes an event in one chunk."""
_MAX_LINE = 1024


class FramingError(Exception):
    """The body is no valid HTTP."""


class Framing(Protocol):
    """Finds the end of one body."""

    is_chunked: bool
    has_ended: bool
    has_surplus: bool
    """Whether bytes came after the end; then the connection cannot be used again."""

    def feed(self, data: bytes) -> bytes:
        """Take received bytes; return those that can be passed on. Raises `FramingError`."""

    def feed_end(self) -> None:
        """Take the end of the connection, which may be the end of the body."""


class Chunked:
    """A body in chunks. What is returned has their frames, but not the terminal chunk."""

    is_chunked = True

    def __init__(self) -> None:
        self.has_ended = self.has_surplus = False
        self._rest = bytearray()  # of an incomplete chunk
        self._needed = 0  # bytes without which it cannot be complete

    def feed(self, data: bytes) -> bytes:
        """See `Framing`."""
        if not self._rest and _is_one_chunk(data) and not self.has_ended:
            return data  # nearly all events of a stream
        if self.has_ended:
            self.has_surplus = True
            return b""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return b""
            data = bytes(self._rest)
            self._rest.clear()
        end = self._end_of_chunks(data)
        if not self.has_ended and end < len(data):
            self._rest += data[end:] if end else data
        return data[:end] if end < len(data) else data

    def feed_end(self) -> None:
        """See `Framing`: a chunked body tells its end itself."""

    def _end_of_chunks(self, data: bytes) -> int:
        """The end of the last complete chunk; notes what the next one needs, or the body's end."""
        begin = 0
        while True:
            line_end = data.find(b"\r\n", begin, begin + _MAX_LINE)
            if line_end < 0:
                if len(data) - begin >= _MAX_LINE:
                    raise FramingError("the size of a chunk is missing")
                self._needed = 0
                return begin
            size = _size(data[begin:line_end])
            if size == 0:
                self._find_end(data, begin, line_end)
                return begin
            end = line_end + size + 4
            if end > len(data):
                self._needed = end - begin
                return begin
            if data[end - 2 : end] != b"\r\n":
                raise FramingError("a chunk is longer than its size")
            begin = end

    def _find_end(self, data: bytes, begin: int, line_end: int) -> None:
        """Look for the end of the trailers of the terminal chunk, which are ignored."""
        self._needed = 0
        end = data.find(b"\r\n\r\n", line_end)
        if end >= 0:
            self.has_ended, self.has_surplus = True, len(data) > end + 4
        elif len(data) - begin > MAX_CHUNK_BYTES:
            raise FramingError("the trailers of the body are too long")


class Sized:
    """A body of a known length."""

    is_chunked = False

    def __init__(self, num_bytes: int) -> None:
        self._num_left = num_bytes
        self.has_ended, self.has_surplus = num_bytes == 0, False

    def feed(self, data: bytes) -> bytes:
        """See `Framing`."""
        part = data[: self._num_left]
        self._num_left -= len(part)
        self.has_ended = self._num_left == 0
        self.has_surplus = len(data) > len(part)
        return part

    def feed_end(self) -> None:
        """See `Framing`."""


class UntilClosed:
    """A body that ends with its connection."""

    is_chunked = False
    has_surplus = True

    def __init__(self) -> None:
        self.has_ended = False

    def feed(self, data: bytes) -> bytes:
        """See `Framing`."""
        return data

    def feed_end(self) -> None:
        """See `Framing`."""
        self.has_ended = True


def framing_of(status: int, headers: Mapping[bytes, bytes]) -> Framing:
    """The framing of a response to a GET or POST. Raises `FramingError`."""
    if status in (204, 304):
        return Sized(0)
    encoding = headers.get(b"transfer-encoding")
    if encoding is not None:
        if encoding.strip().lower() != b"chunked":
            raise FramingError("the transfer encoding is not supported")
        return Chunked()
    length = headers.get(b"content-length")
    if length is None:
        return UntilClosed()
    if not length.isdigit() or len(length) > 18:
        raise FramingError("the content length is no number")
    return Sized(int(length))


def payload(chunks: bytes) -> bytes:
    """What complete chunks contain."""
    return b"".join(_payloads(chunks))


def _payloads(chunks: bytes) -> Iterator[bytes]:
    begin = 0
    while begin < len(chunks):
        line_end = chunks.index(b"\r\n", begin)
        end = line_end + 2 + _size(chunks[begin:line_end])
        yield chunks[line_end + 2 : end]
        begin = end + 2


def _is_one_chunk(data: bytes) -> bool:
    """Whether the data is exactly one chunk; False if that is not obvious."""
    line_end = data.find(b"\r\n", 0, 9)
    if line_end < 1 or data[-2:] != b"\r\n":
        return False
    try:
        size = int(data[:line_end], 16)
    except ValueError:
        return False
    return size > 0 and line_end + size + 4 == len(data)


def _size(line: bytes) -> int:
    try:
        size = int(line.partition(b";")[0], 16)
    except ValueError:
        raise FramingError("the size of a chunk is no number") from None
    if not 0 <= size <= MAX_CHUNK_BYTES:
        raise FramingError(f"a chunk has more than {MAX_CHUNK_BYTES} bytes")
    return size
