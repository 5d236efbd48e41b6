"""Range requests: the part of a file that a client asks for, by RFC 9110, section 14.

A server may ignore a malformed range, and several ranges: the response is then the whole file.
Starlette would answer such requests itself, in plain text.
"""

import re

from starlette.datastructures import Headers
from starlette.types import Scope

from server.http.errors import ApiError

_ONE = re.compile(r"\s*bytes\s*=\s*([0-9]{0,18})-([0-9]{0,18})\s*", re.IGNORECASE)


def within(scope: Scope, num_bytes: int) -> Scope:
    """The request with a range that a file of `num_bytes` bytes can satisfy, or without any.

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
    """The request without its range: for the whole file."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
    return {**scope, "headers": headers}
