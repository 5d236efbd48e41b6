"""A collector for tests: takes spans over OTLP/HTTP, as an OpenTelemetry collector does."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Received:
    """A span that has arrived; ids are hexadecimal, times Unix seconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    began_at: float
    ended_at: float
    is_error: bool
    service: str
    attributes: dict[str, Any]
    events: dict[str, float]  # their times by name

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.ended_at - self.began_at


@dataclass
class Collector:
    """What has arrived at `url`; it answers with `status`."""

    url: str
    spans: list[Received] = field(default_factory=list)
    status: int = 200
    num_posts: int = 0

    def wait_for(self, found: Callable[[list[Received]], bool]) -> list[Received]:
        """All spans, once they are as wanted."""
        deadline = time.monotonic() + PATIENCE_S
        while not found(self.spans):
            assert time.monotonic() < deadline, [span.name for span in self.spans]
            time.sleep(0.01)
        return list(self.spans)

    def trace(self, trace_id: str, *names: str) -> list[Received]:
        """The spans of a trace, once it has spans of these names."""

        def of_trace(spans: list[Received]) -> list[Received]:
            return [span for span in spans if span.trace_id == trace_id]

        def are_there(spans: list[Received]) -> bool:
            return {*names} <= {span.name for span in of_trace(spans)}

        return of_trace(self.wait_for(are_there))


def only(spans: list[Received], name: str) -> Received:
    """The one span of this name."""
    (span,) = [span for span in spans if span.name == name]
    return span


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """A collector for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.num_posts += 1
            if collector.status == 200 and self.path == "/v1/traces":
                collector.spans += _spans_in(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(collector.status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def _spans_in(request: ExportTraceServiceRequest) -> Iterator[Received]:
    for resource in request.resource_spans:
        service = _attributes(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Received(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.kind,
                    span.start_time_unix_nano / 1e9,
                    span.end_time_unix_nano / 1e9,
                    span.status.code == span.status.STATUS_CODE_ERROR,
                    service,
                    _attributes(span.attributes),
                    {event.name: event.time_unix_nano / 1e9 for event in span.events},
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
