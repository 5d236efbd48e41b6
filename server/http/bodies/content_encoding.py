"""Content-Encoding: bodies that clients have compressed, decompressed as they arrive.

The output of each encoding is limited and comes in small parts, so that a body that grows without
end (a "zip bomb") stops at the limit. Reference: RFC 9110 (8.4), RFC 9659 for zstd's window.
"""

import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from backports import zstd
from starlette.requests import Request

from server.http.errors import ApiError, invalid

ENCODINGS = ("gzip", "deflate", "zstd")
MAX_ENCODINGS = 3  # of one body, one around the other
_PART_BYTES = 64 * 1024
_WINDOW_LOG = 23  # 8 MiB, which a decoder of this encoding must support and may insist on
_ZLIB, _RAW, _GZIP = 15, -15, 31  # zlib's `wbits`


class Decoder(Protocol):
    """Decompresses one encoding. `write` raises `zlib.error` and `zstd.ZstdError`."""

    is_complete: bool

    def write(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` decompresses to, in parts of at most `_PART_BYTES`."""


class ZlibDecoder:
    """gzip, also of several members, and deflate, with zlib's header or, as some send it, raw."""

    def __init__(self, *, is_gzip: bool) -> None:
        self.is_complete = False
        self._is_gzip = is_gzip
        self._stream = zlib.decompressobj(_GZIP) if is_gzip else None
        self._head = b""

    def write(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` decompresses to."""
        if self._stream is None:
            data = self._head = self._head + data
            if len(data) < 2:
                return
            has_header = data[0] & 15 == 8 and int.from_bytes(data[:2]) % 31 == 0
            self._stream = zlib.decompressobj(_ZLIB if has_header else _RAW)
        while data:
            if self.is_complete:
                if not self._is_gzip:
                    raise zlib.error("data after its end")
                self._stream, self.is_complete = zlib.decompressobj(_GZIP), False
            part = self._stream.decompress(data, _PART_BYTES)
            self.is_complete = self._stream.eof
            data = self._stream.unused_data if self.is_complete else self._stream.unconsumed_tail
            yield part


class ZstdDecoder:
    """zstd, also of several frames."""

    def __init__(self) -> None:
        self.is_complete = False
        self._stream = _new_zstd()

    def write(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` decompresses to."""
        while data or not (self.is_complete or self._stream.needs_input):
            if self.is_complete:
                self._stream, self.is_complete = _new_zstd(), False
            part = self._stream.decompress(data, _PART_BYTES)
            self.is_complete = self._stream.eof
            data = self._stream.unused_data if self.is_complete else b""
            yield part


def _new_zstd() -> zstd.ZstdDecompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


async def decoded(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body of a request without its encodings, in parts.

    Ends soon after `max_bytes` bytes, which the caller must check, but yields more than that if the
    body is longer. Raises `ApiError` for an unknown encoding (415), and for data that are damaged
    or end too early (400).
    """
    parts: AsyncIterator[bytes] = request.stream()
    for encoding in reversed(_encodings_of(request)):
        parts = _decompressed(parts, encoding, max_bytes)
    async for part in parts:
        yield part


def _encodings_of(request: Request) -> list[str]:
    """Return the encodings in the order in which they were applied. Raises `ApiError` (415)."""
    listed = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
    named = [name.strip().removeprefix("x-") for name in listed]
    encodings = [name for name in named if name not in ("", "identity")]
    unknown = next((name for name in encodings if name not in ENCODINGS), None)
    if unknown is not None or len(encodings) > MAX_ENCODINGS:
        problem = f"'{unknown[:40]}'" if unknown else f"of more than {MAX_ENCODINGS} encodings"
        message = f"Unsupported Content-Encoding {problem}: send gzip, deflate, zstd or identity."
        headers = {"accept-encoding": ", ".join(ENCODINGS)}
        raise ApiError(415, message, code="unsupported_media_type", headers=headers)
    return encodings


async def _decompressed(
    parts: AsyncIterator[bytes], encoding: str, max_bytes: int
) -> AsyncIterator[bytes]:
    decoder: Decoder
    decoder = ZstdDecoder() if encoding == "zstd" else ZlibDecoder(is_gzip=encoding == "gzip")
    num_bytes = 0
    async for data in parts:
        try:
            for part in decoder.write(data):
                num_bytes += len(part)
                yield part
                if num_bytes > max_bytes:
                    return
        except (zlib.error, zstd.ZstdError) as error:
            message = f"The body of your request is not valid {encoding}: {error}."
            raise invalid(message, code="invalid_content_encoding") from error
    if not decoder.is_complete:
        message = f"The body of your request ends within its {encoding} data."
        raise invalid(message, code="invalid_content_encoding")
