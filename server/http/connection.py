"""The connection: a body of bounded size, and work that ends when its client goes away."""

import asyncio
from collections.abc import Callable, Coroutine

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from server.http.errors import ApiError

BODY_TIMEOUT_S = 60.0


async def read_body(
    request: Request, max_bytes: int, on_growth: Callable[[int], None] = lambda _: None
) -> bytes:
    """The body of a request that brings JSON; `on_growth` hears how long it is by now.

    Raises `ApiError` when it says that it is something else (415), is too large (413) or does not
    come in time (408), `ClientDisconnect` when the client goes away meanwhile, which nobody need
    answer (`server.http.errors`).
    """
    _check_content_type(request)
    if announces_more(request, max_bytes):
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
                on_growth(len(body))
    except TimeoutError:
        message = f"The request's body did not come within {BODY_TIMEOUT_S:g} seconds."
        raise ApiError(408, message, code="request_timeout") from None
    return bytes(body)


def announces_more(request: Request, max_bytes: int) -> bool:
    """Whether its body is longer by its own account. Python reads no number of 4,301 digits."""
    digits = request.headers.get("content-length", "").lstrip("0")
    return digits.isdecimal() and (len(digits) > len(str(max_bytes)) or int(digits) > max_bytes)


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


def _check_content_type(request: Request) -> None:
    """A page of another origin may send plain text and forms to us unasked, but no JSON."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given in ("", "application/json") or given.endswith("+json"):
        return
    message = f"Unsupported Content-Type '{given}': send 'application/json'."
    raise ApiError(415, message, code="unsupported_media_type")


def _too_large(max_bytes: int) -> ApiError:
    message = f"Request body too large: at most {max_bytes} bytes are accepted."
    return ApiError(413, message, code="request_too_large")
