"""The connection: a body of bounded size, and work that ends when its client goes away."""

import asyncio
from collections.abc import Coroutine

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from server.errors import ApiError

MAX_BODY_BYTES = 32 * 1024 * 1024


async def read_body(request: Request) -> bytes:
    """The request's body. Raises `ApiError` (413) when it is too large."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


async def run_while_connected(work: Coroutine[None, None, None], receive: Receive) -> bool:
    """Run `work` to its end, or cancel it when the client disconnects; False if it did.

    The work is cancelled wherever it waits, inside the sending of a chunk too. What it raises is
    raised here.
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


def _too_large() -> ApiError:
    message = f"Request body too large: at most {MAX_BODY_BYTES} bytes are accepted."
    return ApiError(413, message, code="request_too_large")
