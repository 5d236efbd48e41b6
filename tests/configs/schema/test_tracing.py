"""The address of the collector: with the path of traces, and over HTTP only."""

import pytest
from pydantic import ValidationError

from configs.schema.tracing import TracingConfig


@pytest.mark.parametrize(
    ("typed", "used"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://host/otlp/v1/traces", "https://host/otlp/v1/traces"),
        ("", None),
    ],
)
def test_the_path_of_traces_is_added_to_an_address_without_one(typed: str, used: str) -> None:
    assert TracingConfig(otlp_traces_endpoint=typed).otlp_traces_endpoint == used


@pytest.mark.parametrize(
    "typed", ["collector:4318", "grpc://collector:4317", "http://", "http://h:x"]
)
def test_another_address_is_refused(typed: str) -> None:
    with pytest.raises(ValidationError, match="OTLP over HTTP"):
        TracingConfig(otlp_traces_endpoint=typed)
