"""The event stream: what all streamed answers have in common."""

from server.errors import ApiError

DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def error_event(error: ApiError) -> bytes:
    """The event for a failure after the stream has begun."""
    return b"data: " + error.body() + b"\n\n"
