"""The event stream: what all streamed answers have in common."""

from typing import Any

import msgspec

from server.http.errors import ApiError

DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_encode = msgspec.json.Encoder().encode


class EventFrame:
    """What is the same in all events of one stream: encoded once, so an event costs little.

    `around_text` stands around the text of a choice that has nothing else to tell.
    """

    def __init__(
        self, head: dict[str, Any], around_text: tuple[bytes, bytes], *, include_usage: bool
    ) -> None:
        self._prefix = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._suffix = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._before_text, after_text = around_text
        self._after_text = after_text + b',"logprobs":null,"finish_reason":null}' + self._suffix

    def text(self, index: int, text: str) -> bytes:
        """The event of a choice's new text; most are of this kind, and built without a model."""
        return b'%b{"index":%d,%b%b%b' % (
            self._prefix,
            index,
            self._before_text,
            _encode(text),
            self._after_text,
        )

    def choice(self, choice: dict[str, Any], beside: dict[str, Any] | None = None) -> bytes:
        """The event of a choice, and of what is told `beside` the choices."""
        if not beside:
            return self._prefix + _encode(choice) + self._suffix
        return self._prefix + _encode(choice) + b"]," + _encode(beside)[1:-1] + self._suffix[1:]

    def no_choice(self, told: dict[str, Any]) -> bytes:
        """An event of something else, such as the usage."""
        return self._prefix + b"]," + _encode(told)[1:] + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """The event for a failure after the stream has begun."""
    return b"data: " + error.body() + b"\n\n"
