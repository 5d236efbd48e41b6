"""The event stream: chunks of a streamed answer as server-sent events, built without a model.

Only a choice's text changes from chunk to chunk, so everything before it is encoded once.
"""

import msgspec

from server.errors import ApiError
from server.generation import Piece

DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_encode = msgspec.json.Encoder().encode


class CompletionEvents:
    """Encodes the chunks of one completion; `with_usage` when a usage chunk is to come."""

    def __init__(self, completion_id: str, created: int, model: str, *, with_usage: bool) -> None:
        head = {"id": completion_id, "object": "text_completion", "created": created}
        self._head = b"data: " + _encode(head | {"model": model})[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"
        self._ends = {
            reason: b',"logprobs":null,"finish_reason":' + _encode(reason) + b"}" + self._tail
            for reason in (None, "stop", "length")
        }

    def chunk(self, piece: Piece) -> bytes:
        """The event for one piece."""
        return b'%b{"index":%d,"text":%b%b' % (
            self._head,
            piece.choice_index,
            _encode(piece.text),
            self._ends[piece.finish_reason],
        )

    def usage(self, usage: dict[str, int]) -> bytes:
        """The event that follows the last choice: no choices, but the token counts."""
        return self._head + b'],"usage":' + _encode(usage) + b"}\n\n"


def error_event(error: ApiError) -> bytes:
    """The event for a failure after the stream has begun."""
    return b"data: " + error.body() + b"\n\n"
