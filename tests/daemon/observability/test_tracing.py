"""Traces: spans reach a collector, and one that is gone harms nothing."""

import logging
import socket
import time

import pytest

from configs.schema.tracing import TracingConfig
from daemon.observability import tracing
from daemon.observability.tracing import SeldomHandler, Tracing, TracingError, WallClock, headers_of
from tests.collector import collecting, only

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def begun(url: str) -> Tracing:
    made = tracing.begin(TracingConfig(otlp_traces_endpoint=url), "a-service")
    assert made is not None
    return made


def test_without_an_endpoint_there_are_no_traces() -> None:
    assert tracing.begin(TracingConfig(), "a-service") is None


def test_spans_arrive_with_parents_attributes_and_the_service() -> None:
    with collecting() as collector:
        traces = begun(collector.url)
        header = (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())
        root = traces.start("root", [header, (b"accept", b"*/*")], {"kind": "a"})
        traces.child(root, "child", began_ns=WallClock().ns(time.monotonic() - 5)).end()
        root.end()
        traces.close()
        spans = collector.spans
    parent, child = only(spans, "root"), only(spans, "child")
    assert (parent.trace_id, parent.parent_id, parent.service) == (TRACE, PARENT, "a-service")
    assert (child.trace_id, child.parent_id) == (TRACE, parent.span_id)
    assert parent.attributes == {"kind": "a"}
    assert child.seconds == pytest.approx(5, abs=0.5)


def test_a_trace_has_one_time_per_moment_while_the_wall_clock_is_corrected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, now = WallClock(), time.monotonic()
    before = clock.ns(now)
    assert before == pytest.approx(time.time_ns(), abs=1e9)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert clock.ns(now) == before
    assert clock.ns(now + 0.5) - before == pytest.approx(5e8, abs=1e3)


def test_a_client_that_is_not_sampled_gets_no_spans_and_says_so_to_the_next() -> None:
    with collecting() as collector:
        traces = begun(collector.url)
        root = traces.start("root", [(b"traceparent", f"00-{TRACE}-{PARENT}-00".encode())])
        assert not root.is_recording()
        (name, value), *_ = headers_of(root)
        root.end()
        traces.close()
    assert (name, value[:36], value[-2:]) == (b"traceparent", f"00-{TRACE}-".encode(), b"00")
    assert collector.spans == []


@pytest.mark.parametrize("header", [b"", b"00-zz", b"\xff", b"00-" + 32 * b"0" + b"-1-01"])
def test_a_traceparent_that_is_not_valid_begins_a_trace_of_its_own(header: bytes) -> None:
    with collecting() as collector:
        traces = begun(collector.url)
        traces.start("root", [(b"traceparent", header)]).end()
        traces.close()
    assert only(collector.spans, "root").parent_id == ""


def test_the_variables_of_opentelemetry_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "another")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    with collecting() as collector:
        traces = begun(collector.url)
        for _ in range(200):
            traces.start("root").end()
        traces.close()
    assert 50 < len(collector.spans) < 150
    assert {span.service for span in collector.spans} == {"another"}


def test_a_collector_that_is_gone_delays_nothing_and_is_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as taken:  # bound, so that nothing listens there
        taken.bind(("127.0.0.1", 0))
        traces = begun(f"http://127.0.0.1:{taken.getsockname()[1]}")
        caplog.clear()
        for _ in range(5000):  # more than the queue holds
            traces.start("root").end()
        traces.close()
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.name for record in lines] == ["tdpipe"]
    assert lines[0].getMessage().startswith("traces: ")


def test_what_opentelemetry_says_is_logged_seldom_and_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(tracing.time, "monotonic", lambda: now)
    handler = SeldomHandler()

    def say(text: str) -> None:
        handler.emit(logging.LogRecord("otel", logging.WARNING, "", 1, text, (), None))

    for number in range(10):
        say(f"failure {number}\nwith more lines")
    now += tracing.LOG_INTERVAL_S
    say("failure 10")
    assert caplog.messages == [
        "traces: failure 0; requests are served as usual",
        "traces: failure 10 (9 messages before it); requests are served as usual",
    ]


def test_without_the_sdk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(TracingError, match=r"pip install 'tdpipe\[otel\]'"):
        begun("http://127.0.0.1:1")
