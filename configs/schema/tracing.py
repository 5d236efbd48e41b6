"""Settings of traces: where the spans of requests are sent.

What OpenTelemetry has a variable for (OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME,
OTEL_EXPORTER_OTLP_HEADERS and so on) has no setting of ours: its SDK reads the environment.
"""

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from configs.schema.part import Part

TRACES_PATH = "/v1/traces"


class TracingConfig(Part, title="Tracing"):
    """Spans of requests, for an OpenTelemetry collector."""

    otlp_traces_endpoint: str | None = Field(
        None,
        description="OTLP/HTTP address to which the spans of requests are sent, e.g. "
        "http://collector:4318; needs the extra otel of this package [no traces]",
    )

    @field_validator("otlp_traces_endpoint")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        """The address with the path that OTLP gives to traces, if it has none."""
        if not value:
            return None
        parts = urlsplit(value)
        try:
            is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            is_valid = False
        if not is_valid:
            raise ValueError(
                "must be like http://collector:4318: OTLP over HTTP, not the gRPC of port 4317"
            )
        return value if parts.path.strip("/") else value.rstrip("/") + TRACES_PATH
