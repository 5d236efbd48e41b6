"""The connection: a body of bounded size, and work that ends when its client goes away."""

import asyncio
from collections.abc import Coroutine

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from server.errors import ApiError

# A million token ids; decoding them takes half a second, in which nobody else is served.
MAX_BODY_BYTES = 8 * 1024 * 1024
BODY_TIMEOUT_S = 60.0


async def read_body(request: Request) -> bytes:
    """The request's body.

    Raises `ApiError` when it is too large (413) or does not come in time (408), `ClientDisconnect`
    when the client goes away meanwhile.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        message = f"The request's body did not come within {BODY_TIMEOUT_S:g} seconds."
        raise ApiError(408, message, code="request_timeout") from None
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
