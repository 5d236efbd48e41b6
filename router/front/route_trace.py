"""The trace of a request through the router: its wait for an instance, and each attempt at one.

    POST (server)            from the request's head to its last byte
      wait for instance      until the core has routed it, at first or again
      POST (client)          an attempt; the spans of the instance are below it

If the router sends no spans, none of this has any effect.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from starlette.requests import Request

from daemon.observability.tracing import Attributes, Header, Tracing, headers_of, trace_id_of
from router.front.headers import without_trace
from router.upstream.address import Address
from server.http.request_record import record_of

_FAILURES = ("error", "timeout")


class RouteTrace:
    """The span of one request, or nothing."""

    def __init__(self, tracing: Tracing | None, span: Span | None = None) -> None:
        self._tracing, self._span = tracing, span
        self._num_attempts = 0

    @classmethod
    def begin(cls, tracing: Tracing | None, request: Request, model: str | None) -> "RouteTrace":
        """Begin the trace of a request; the outermost layer ends it with the response."""
        if tracing is None:
            return cls(None)
        attributes = {
            "http.request.method": request.method,
            "url.path": request.url.path,
            "client.address": request.client.host if request.client else "unix",
            "tdpipe.request.id": request.state.request_id,
        }
        if model is not None:
            attributes["gen_ai.request.model"] = model
        span = tracing.start(f"POST {request.url.path}", request.scope["headers"], attributes)
        trace = cls(tracing, span)
        if span.is_recording():
            record = record_of(request.scope)
            record.trace_id, record.on_end = trace_id_of(span), trace.end
            record.headers.append((b"traceresponse", dict(headers_of(span))[b"traceparent"]))
        return trace

    @classmethod
    def of_line(cls, tracing: Tracing | None, path: str, custom_id: str) -> "RouteTrace":
        """Begin the trace of a line of a batch; call `end`."""
        if tracing is None:
            return cls(None)
        attributes = {"url.path": path, "tdpipe.batch.custom_id": custom_id}
        return cls(tracing, tracing.start(f"line {path}", (), attributes, SpanKind.INTERNAL))

    @property
    def is_on(self) -> bool:
        """Whether the router sends spans."""
        return self._tracing is not None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The request waits for an instance in the block."""
        with self._part("wait for instance"):
            yield

    @contextmanager
    def attempt(
        self, address: Address, headers: Iterable[Header]
    ) -> "Iterator[tuple[list[Header], Attempt]]":
        """The request is sent to an instance in the block, with the headers that it gets."""
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            "server.address": address.host,
            "server.port": address.port,
        }
        if self._num_attempts:
            attributes["http.request.resend_count"] = self._num_attempts
        self._num_attempts += 1
        with self._part("POST", attributes, SpanKind.CLIENT) as span:
            own = [*headers] if span is None else [*without_trace(headers), *headers_of(span)]
            yield own, Attempt(span)

    def resumed(self, num_tokens: int) -> None:
        """The next instance goes on after so many tokens of the answer."""
        if self._span is not None:
            self._span.add_event("resume", {"tdpipe.output_tokens": num_tokens})

    def end(self, status: int, outcome: str) -> None:
        """The response has ended with this status in the access log."""
        if self._span is None:
            return
        self._span.set_attribute("http.response.status_code", status)
        self._span.set_attribute("tdpipe.outcome", outcome)
        if status >= 500 or outcome in _FAILURES:
            self._span.set_attribute("error.type", outcome if outcome in _FAILURES else str(status))
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    @contextmanager
    def _part(
        self, name: str, attributes: Attributes | None = None, kind: SpanKind = SpanKind.INTERNAL
    ) -> Iterator[Span | None]:
        if self._tracing is None or self._span is None:
            yield None
            return
        span = self._tracing.child(self._span, name, attributes, kind)
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR, str(error)))
            raise
        finally:
            span.end()


class Attempt:
    """One attempt; its block ends it."""

    def __init__(self, span: Span | None) -> None:
        self._span = span

    def answered(self, status: int) -> None:
        """The head of the instance's response is there."""
        if self._span is not None:
            self._span.set_attribute("http.response.status_code", status)
