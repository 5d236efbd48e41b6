"""The headers that the router passes on, in both directions; all others are its own or left out."""

from collections.abc import Iterable, Mapping

from router.upstream.address import Header

_OF_TRACES = frozenset({b"traceparent", b"tracestate"})
_OF_REQUESTS = frozenset({b"accept", b"content-type", b"user-agent", *_OF_TRACES})
# Those of the connection, those that the middleware adds, and the length, which may change.
_OWN_OF_RESPONSES = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"transfer-encoding",
        b"content-length",
        b"trailer",
        b"date",
        b"server",
        b"x-request-id",
        b"www-authenticate",
    }
)
PROMPT_TOKENS = b"x-tdpipe-prompt-tokens"


def to_instance(headers: Iterable[Header], request_id: str) -> list[Header]:
    """Those of a client's request that an instance gets, with the id of the request.

    The client's key is not among them: it is the router's.
    """
    passed = [header for header in headers if header[0] in _OF_REQUESTS]
    return [*passed, (b"x-request-id", request_id.encode())]


def without_trace(headers: Iterable[Header]) -> list[Header]:
    """The headers without the client's trace, if the router's own span takes its place."""
    return [header for header in headers if header[0] not in _OF_TRACES]


def to_client(
    headers: Mapping[bytes, bytes], num_bytes: int | None = None, *, is_traced: bool = False
) -> list[Header]:
    """Those of an instance's response that the client gets; the body has `num_bytes`, if known.

    If the request `is_traced`, the response names the router's span and not the instance's.
    """
    passed = [
        (name, value)
        for name, value in headers.items()
        if name not in _OWN_OF_RESPONSES
        and not name.startswith(b"access-control-")
        and not (is_traced and name == b"traceresponse")
    ]
    if num_bytes is not None:
        passed.append((b"content-length", b"%d" % num_bytes))
    return passed
