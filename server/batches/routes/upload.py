"""Uploads: receives a multipart form and writes its file to disk as the bytes arrive.

Reference: https://platform.openai.com/docs/api-reference/files/create, RFC 7578.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.http.bodies.body_reader import announces_more
from server.http.bodies.content_encoding import decoded
from server.http.errors import ApiError, invalid

# The longest time in which a client may send nothing.
SILENCE_TIMEOUT_S = 60.0
MAX_FIELDS = 16
MAX_FIELD_BYTES = 1024
# The maximum bytes of a form without its file.
_MAX_FORM_OVERHEAD_BYTES = 64 * 1024


class MultipartForm:
    """A multipart form being received; feed it with `write`, which returns the file's bytes.

    Raises `ApiError` (400, and 413 for a file above `max_file_bytes`).
    """

    def __init__(self, content_type: str, max_file_bytes: int) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.num_bytes = 0
        self.is_complete = False
        self._max_file_bytes = max_file_bytes
        self._file_parts: list[bytes] = []
        self._header_name, self._header_value = bytearray(), bytearray()
        self._disposition = b""
        self._name, self._value = "", bytearray()
        self._is_file = False
        self._num_fields = 0
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise invalid("The request's content type must be multipart/form-data.")
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_to_header_name,
                    "on_header_value": self._add_to_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise invalid(f"The form's boundary cannot be used: {error}.") from error

    def write(self, data: bytes) -> bytes:
        """Parse a chunk, and return the bytes in it that belong to the file."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise invalid(f"We could not parse the form of your request: {error}.") from error
        parts, self._file_parts = self._file_parts, []
        return b"".join(parts)

    def _begin_part(self) -> None:
        self._num_fields += 1
        if self._num_fields > MAX_FIELDS:
            raise invalid(f"The form has too many fields: at most {MAX_FIELDS} are accepted.")
        self._disposition, self._value = b"", bytearray()

    def _add_to_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_to_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name, self._header_value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._is_file = self._name == "file"
        if not self._is_file:
            return
        if self.filename is not None:
            raise invalid("The form holds more than one file.", "file")
        self.filename = options.get(b"filename", b"file").decode(errors="replace")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.num_bytes += end - start
            if self.num_bytes > self._max_file_bytes:
                raise too_large(self._max_file_bytes)
            self._file_parts.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise invalid(f"'{self._name}' is too long.", self._name)

    def _end_part(self) -> None:
        if not self._is_file:
            self.fields[self._name] = self._value.decode(errors="replace")

    def _end(self) -> None:
        self.is_complete = True


async def receive(request: Request, target: Path, max_file_bytes: int) -> MultipartForm:
    """Receive the request's form, and write its file to `target`, synced to disk.

    Raises `ApiError` (400; 408 if the client sends nothing; 413 if the file is too large; 415 for
    an unknown encoding), `ClientDisconnect` and `OSError`.
    """
    if announces_more(request, max_file_bytes + _MAX_FORM_OVERHEAD_BYTES):
        raise too_large(max_file_bytes)
    form = MultipartForm(request.headers.get("content-type", ""), max_file_bytes)
    with target.open("wb") as file:
        stream = aiter(decoded(request, max_file_bytes + _MAX_FORM_OVERHEAD_BYTES))
        while (data := await _next_data(stream)) is not None:
            content = form.write(data)
            if content:
                await asyncio.to_thread(file.write, content)
        if not form.is_complete:
            raise invalid("The form of your request ends too early.")
        await asyncio.to_thread(_sync, file)
    return form


def too_large(max_file_bytes: int) -> ApiError:
    """Return the 413 for a file that is too large."""
    message = f"The file is too large: at most {max_file_bytes} bytes are accepted."
    return ApiError(413, message, param="file", code="file_too_large")


async def _next_data(stream: AsyncIterator[bytes]) -> bytes | None:
    try:
        async with asyncio.timeout(SILENCE_TIMEOUT_S):
            return await anext(stream, None)
    except TimeoutError:
        message = f"Nothing of the request's body was received for {SILENCE_TIMEOUT_S:g} seconds."
        raise ApiError(408, message, code="request_timeout") from None


def _sync(file: BinaryIO) -> None:
    """Sync the file to disk, so that it survives a power failure."""
    file.flush()
    os.fsync(file.fileno())
