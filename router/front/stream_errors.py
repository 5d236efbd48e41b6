"""The events with which a stream ends that has begun and cannot go on, as a daemon writes them."""

import msgspec

from server.http.errors import ApiError

_DONE = b"data: [DONE]\n\n"


def error_events(path: str, error: ApiError, *, is_cut: bool = False) -> bytes:
    """The events of an error in the format of the path's API; if the last one `is_cut`, end it."""
    lead = b"\n\n" if is_cut else b""
    if path != "/v1/responses":
        return lead + b"data: " + error.body() + b"\n\n" + _DONE
    return lead + b"event: error\ndata: %b\n\n" % msgspec.json.encode(
        {"type": "error"} | error.details
    )
