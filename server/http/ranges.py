"""Range requests for a part of a file (RFC 9110, section 14).

A server may ignore malformed ranges and requests for several ranges, and return the whole file.
Without this module, Starlette would answer such requests with errors in plain text.
"""

import re

from starlette.datastructures import Headers
from starlette.types import Scope

from server.http.errors import ApiError

_ONE = re.compile(r"\s*bytes\s*=\s*([0-9]{0,18})-([0-9]{0,18})\s*", re.IGNORECASE)


def within(scope: Scope, num_bytes: int) -> Scope:
    """The request, without its range unless a file of `num_bytes` bytes can satisfy it.

    Raises `ApiError` (416) for a range outside of the file.
    """
    headers = Headers(scope=scope)
    match = _ONE.fullmatch(headers.get("range", ""))
    first, last = match.groups() if match else ("", "")
    if not first and not last:
        return without(scope)
    if first and last and int(last) < int(first):
        return without(scope)
    begin = int(first) if first else max(0, num_bytes - int(last))
    if begin < num_bytes:
        return scope
    if "if-range" in headers:
        return without(scope)
    message = f"The range lies outside of the file, which has {num_bytes} bytes."
    size = {"content-range": f"bytes */{num_bytes}"}
    raise ApiError(416, message, code="range_not_satisfiable", headers=size)


def without(scope: Scope) -> Scope:
    """The request without its range, so that the response is the whole file."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
    return {**scope, "headers": headers}
