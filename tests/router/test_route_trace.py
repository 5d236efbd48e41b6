"""The router's spans: the wait for an instance, and each attempt at one."""

from collections.abc import Iterator

import pytest

from configs.schema.tracing import TracingConfig
from daemon.observability import tracing
from daemon.observability.tracing import Tracing
from tests.collector import Collector, collecting, only
from tests.router.world import (
    DONE,
    END,
    HEAD,
    Asked,
    FakeDaemon,
    chunk,
    completion,
    event,
    run_async,
    running,
)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture
def traces(collector: Collector) -> Iterator[Tracing]:
    made = tracing.begin(TracingConfig(otlp_traces_endpoint=collector.url), "tdpipe-router")
    assert made is not None
    yield made
    made.close()


async def answers(asked: Asked) -> None:
    await asked.answer({"text": "hello"}, 200, "traceresponse: 00-1-2-01")


async def refuses(asked: Asked) -> None:
    await asked.answer({"error": {}}, 429, "retry-after: 1")


def test_the_instance_s_span_is_below_that_of_the_attempt(
    collector: Collector, traces: Tracing
) -> None:
    daemon = FakeDaemon(answers)

    async def test() -> None:
        async with running(daemon, traces=traces) as world:
            headers = {"traceparent": TRACEPARENT, "tracestate": "a=b"}
            reply = await world.ask("/v1/completions", completion(), **headers)
            assert reply.status == 200
            assert reply.headers["traceresponse"].startswith(f"00-{TRACE}-")

    run_async(test())
    traces.close()
    root, attempt = only(collector.spans, "POST /v1/completions"), only(collector.spans, "POST")
    assert (root.trace_id, root.parent_id) == (TRACE, PARENT)
    assert attempt.parent_id == only(collector.spans, "wait for instance").parent_id == root.span_id
    assert root.attributes["gen_ai.request.model"] == "little"
    assert root.attributes["tdpipe.outcome"] == "success"
    assert attempt.attributes["server.port"] == daemon.port
    (asked,) = daemon.asked
    assert asked.headers["traceparent"] == f"00-{TRACE}-{attempt.span_id}-01"
    assert asked.headers["tracestate"] == "a=b"


def test_each_attempt_is_a_span(collector: Collector, traces: Tracing) -> None:
    daemons = FakeDaemon(refuses), FakeDaemon(answers)

    async def test() -> None:
        async with running(*daemons, traces=traces) as world:
            for _ in range(2):  # one of them begins at the instance that refuses
                assert (await world.ask("/v1/completions", completion())).status == 200

    run_async(test())
    traces.close()
    attempts = [span for span in collector.spans if span.name == "POST"]
    assert sorted(s.attributes["http.response.status_code"] for s in attempts) == [200, 200, 429]
    (again,) = [s for s in attempts if s.attributes.get("http.request.resend_count") == 1]
    (refused,) = [s for s in attempts if s.attributes["http.response.status_code"] == 429]
    assert again.parent_id == refused.parent_id


def test_a_resumed_stream_says_after_how_many_tokens(collector: Collector, traces: Tracing) -> None:
    async def breaks(asked: Asked) -> None:
        if "tdpipe_resume" in asked.json:
            await asked.write(HEAD, chunk(event("", 0, finish="stop")), chunk(DONE), END)
            return
        await asked.write(HEAD, chunk(event("hel", 5)), chunk(event("lo", 6)))
        asked.writer.transport.abort()

    async def test() -> None:
        async with running(FakeDaemon(breaks), FakeDaemon(breaks), traces=traces) as world:
            assert (await world.stream()).body.endswith(DONE)

    run_async(test())
    traces.close()
    first, second = sorted(
        (span for span in collector.spans if span.name == "POST"), key=lambda span: span.began_at
    )
    assert (first.is_error, second.is_error) == (True, False)
    root = only(collector.spans, "POST /v1/completions")
    assert first.ended_at <= root.events["resume"] <= second.began_at


def test_without_traces_the_client_s_own_goes_on(collector: Collector) -> None:
    daemon = FakeDaemon(answers)

    async def test() -> None:
        async with running(daemon) as world:
            reply = await world.ask("/v1/completions", completion(), traceparent=TRACEPARENT)
            assert reply.headers["traceresponse"] == "00-1-2-01"  # the instance's

    run_async(test())
    assert daemon.asked[0].headers["traceparent"] == TRACEPARENT
    assert collector.spans == []


def test_an_unsampled_client_is_unsampled_at_the_instance_too(
    collector: Collector, traces: Tracing
) -> None:
    daemon = FakeDaemon(answers)

    async def test() -> None:
        async with running(daemon, traces=traces) as world:
            unsampled = TRACEPARENT[:-2] + "00"
            await world.ask("/v1/completions", completion(), traceparent=unsampled)

    run_async(test())
    traces.close()
    assert daemon.asked[0].headers["traceparent"].startswith(f"00-{TRACE}-")
    assert daemon.asked[0].headers["traceparent"].endswith("-00")
    assert collector.spans == []
