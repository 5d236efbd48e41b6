"""Traces: spans of requests, which a thread sends to an OpenTelemetry collector.

The SDK is not imported without `--otlp-traces-endpoint`. A collector that is slow or gone delays no
request: spans wait in a bounded queue, and those that do not fit are dropped. Of all that the SDK
would log, one line a minute is logged.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from configs.schema.tracing import TracingConfig
from daemon.start_error import StartError
from daemon.version import VERSION

FLUSH_TIMEOUT_S = 2.0
"""For the spans that are not sent at the end; the supervisor waits only a little longer."""
LOG_INTERVAL_S = 60.0
MAX_LOGGED_CHARACTERS = 300
_PROPAGATED = (b"traceparent", b"tracestate")

Attributes = Mapping[str, str | int | float | bool | list[str]]
Header = tuple[bytes, bytes]

log = logging.getLogger("tdpipe")
_propagator = TraceContextTextMapPropagator()


class TracingError(StartError):
    """Spans cannot be sent; the message is one line for the user."""


class Tracing:
    """Makes spans. All methods but `close` may be called from an event loop: none of them waits."""

    def __init__(
        self,
        tracer: Tracer,
        flush: Callable[[], object] = lambda: None,
        abandon: Callable[[], object] = lambda: None,
    ) -> None:
        """`flush` sends what waits, and ends the thread that sends; `abandon` ends its attempts."""
        self._tracer, self._flush, self._abandon = tracer, flush, abandon

    def start(
        self,
        name: str,
        headers: Iterable[Header] = (),
        attributes: Attributes | None = None,
        kind: SpanKind = SpanKind.SERVER,
    ) -> Span:
        """Start a span now, below the one that the headers of a request name, if they name one.

        The sampler decides here: a span that `is_recording` is false for is sent to nobody.
        """
        carrier = {
            name.decode(): value.decode("latin-1") for name, value in headers if name in _PROPAGATED
        }
        context = _propagator.extract(carrier, Context())
        return self._tracer.start_span(name, context, kind, attributes)

    def child(
        self,
        parent: Span,
        name: str,
        attributes: Attributes | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        began_ns: int | None = None,
    ) -> Span:
        """Start a span below another one, now or at a Unix time (nanoseconds)."""
        context = set_span_in_context(parent, Context())
        return self._tracer.start_span(name, context, kind, attributes, start_time=began_ns)

    def close(self) -> None:
        """Send the spans that wait, for at most `FLUSH_TIMEOUT_S`; later ones are dropped."""
        # In a thread, because the SDK waits for up to 30 s for a collector that does not answer.
        flushing = threading.Thread(target=self._flush, name="flush of traces", daemon=True)
        flushing.start()
        flushing.join(FLUSH_TIMEOUT_S)
        if flushing.is_alive():
            self._abandon()


def begin(config: TracingConfig, service: str) -> Tracing | None:
    """The traces of this process, or None without an endpoint; `service` is its default name.

    Raises `TracingError`.
    """
    endpoint = config.otlp_traces_endpoint
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError(
            f"otlp_traces_endpoint needs OpenTelemetry: pip install 'tdpipe[otel]' ({error})"
        ) from error
    _log_seldom()
    try:
        resource = Resource.create()
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": service}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint)
        processor = BatchSpanProcessor(exporter)
    except (ValueError, OSError) as error:  # what the variables of OpenTelemetry say
        raise TracingError(f"the settings of OpenTelemetry are not valid: {error}") from error
    provider.add_span_processor(processor)
    log.info("the spans of requests are sent to %s", endpoint)
    tracer = provider.get_tracer("tdpipe", VERSION)
    return Tracing(tracer, processor.shutdown, exporter.shutdown)


def headers_of(span: Span) -> list[Header]:
    """The headers that make the spans of the next process children of this one."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, set_span_in_context(span, Context()))
    return [(name.encode(), value.encode()) for name, value in carrier.items()]


def trace_id_of(span: Span) -> str:
    """The id of the span's trace, in hexadecimal."""
    return f"{span.get_span_context().trace_id:032x}"


class WallClock:
    """The Unix times of one trace, by one reading of both clocks.

    Two readings differ by what passes between their halves, and by every correction of the wall
    clock: with one each, a span could begin before the one that it follows has ended.
    """

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def ns(self, at: float) -> int:
        """The Unix time in nanoseconds of a time of the monotonic clock (seconds)."""
        return self._offset_ns + int(at * 1e9)


def _log_seldom() -> None:
    logger = logging.getLogger("opentelemetry")
    logger.handlers[:] = [SeldomHandler()]
    logger.propagate = False


class SeldomHandler(logging.Handler):
    """Logs one line in `LOG_INTERVAL_S` of what OpenTelemetry says, and how many it was."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._silent_until = 0.0
        self._num_silent = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record, unless another one was logged a moment ago."""
        now = time.monotonic()
        if now < self._silent_until:
            self._num_silent += 1
            return
        self._silent_until = now + LOG_INTERVAL_S
        before = f" ({self._num_silent} messages before it)" if self._num_silent else ""
        self._num_silent = 0
        first_line = record.getMessage().partition("\n")[0][:MAX_LOGGED_CHARACTERS]
        log.warning("traces: %s%s; requests are served as usual", first_line, before)
