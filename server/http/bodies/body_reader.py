"""Reading request bodies, with a size limit for each body and a memory limit for all together.

The size of a body and the queue of requests are bounded. But thousands of requests could be between
the two: their bodies are received, and they wait for a tokenizer thread. The memory limit bounds
those.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.requests import Request

from server.http.bodies.content_encoding import decoded
from server.http.errors import ApiError, too_busy

BODY_TIMEOUT_S = 60.0
# uvicorn reads this far ahead on each connection, whatever the limit.
FREE_BYTES = 64 * 1024


class BodyMemory:
    """Limits each body to `max_body_bytes`, and all bodies together to `max_bytes`.

    The first `FREE_BYTES` of each body do not count towards `max_bytes`. If several large bodies
    are complete at the same time, they are returned one at a time, so that the event loop can run
    other tasks between parsing two of them. Batch files do not count, because they are written to
    disk as they are received.
    """

    def __init__(self, max_bytes: int, max_body_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes, self._max_body_bytes = max_bytes, max_body_bytes
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body of a request; it counts towards the memory limit until the block ends.

        Raises what `read_body` raises, and `ApiError` (429) if the memory limit is reached.
        """
        held = 0

        def grow(num_bytes: int) -> None:
            nonlocal held
            more = max(0, num_bytes - FREE_BYTES) - held
            if self.num_bytes + more > self._max_bytes:
                message = "Too many large requests are being received. Please retry shortly."
                raise too_busy(message, "body_memory")
            self.num_bytes += more
            held += more

        try:
            body = await read_body(request, self._max_body_bytes, grow)
            if held:
                async with self._turn:
                    await asyncio.sleep(0)
            yield body
        finally:
            self.num_bytes -= held


async def read_body(
    request: Request, max_bytes: int, on_growth: Callable[[int], None] = lambda _: None
) -> bytes:
    """Read the body of a JSON request; `on_growth` is called with its length so far.

    The lengths are those after decompression (`server.http.bodies.content_encoding`). Raises
    `ApiError` for another content type or encoding (415), damaged compressed data (400), a body
    that is too large (413) or one that is not received in time (408). Raises `ClientDisconnect` if
    the client disconnects meanwhile; this needs no response (`server.http.errors`).
    """
    _check_content_type(request)
    if announces_more(request, max_bytes):
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in decoded(request, max_bytes):
                body += part
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
                on_growth(len(body))
    except TimeoutError:
        message = f"The request's body was not received within {BODY_TIMEOUT_S:g} seconds."
        raise ApiError(408, message, code="request_timeout") from None
    return bytes(body)


def announces_more(request: Request, max_bytes: int) -> bool:
    """Whether the content-length exceeds the limit.

    The number of digits is compared first, because `int` refuses more than 4,300 digits.
    """
    digits = request.headers.get("content-length", "").lstrip("0")
    return digits.isdecimal() and (len(digits) > len(str(max_bytes)) or int(digits) > max_bytes)


def _check_content_type(request: Request) -> None:
    """Refuse anything but JSON.

    Browsers let pages of other origins send plain text and forms without a preflight request.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given in ("", "application/json") or given.endswith("+json"):
        return
    message = f"Unsupported Content-Type '{given}': send 'application/json'."
    raise ApiError(415, message, code="unsupported_media_type")


def _too_large(max_bytes: int) -> ApiError:
    message = f"Request body too large: at most {max_bytes} bytes are accepted."
    return ApiError(413, message, code="request_too_large")
