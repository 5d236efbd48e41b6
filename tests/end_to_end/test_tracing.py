"""Traces of real requests: a collector gets the spans of daemons and of a router before them."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from tests.collector import Collector, Received, collecting, only
from tests.end_to_end.daemon import Daemon
from tests.end_to_end.router import Router, instances_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARTS = ["prepare", "queue", "prefill", "decode"]
SETTINGS = ["--dtype", "float32", "--device", "cpu", "--max-restarts", "100"]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def daemon(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One whose KV cache is so small that sequences are preempted, and whose stages may die."""
    arguments = [*SETTINGS, "--kv-cache-memory-bytes", "700000", "--predictor", "constant:1"]
    arguments += ["--otlp-traces-endpoint", collector.url]
    with Daemon(tmp_path_factory.mktemp("traced"), *arguments) as found:
        yield found


def ask(url: str, trace_id: str, max_tokens: int = 20, **fields: object) -> httpx.Response:
    """A completion of so many tokens, in this trace."""
    body = {"prompt": "Count to three in words.\n", "max_tokens": max_tokens, "temperature": 0}
    body |= {"ignore_eos": True, **fields}
    headers = {"traceparent": f"00-{trace_id}-{PARENT}-01"}
    return httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=120)


def root_of(spans: list[Received], service: str = "tdpipe") -> Received:
    """The span of the request in this process."""
    (span,) = [each for each in spans if each.service == service and each.kind == 2]
    return span


def test_a_request_is_a_tree_of_spans_with_the_engine_s_times(
    daemon: Daemon, collector: Collector
) -> None:
    answer = ask(daemon.url, TRACE)
    spans = collector.trace(TRACE, *PARTS)
    root = root_of(spans)
    assert root.name == "text_completion tdpipe-demo"
    assert root.parent_id == PARENT
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{root.span_id}-01"
    assert root.attributes["gen_ai.usage.output_tokens"] == 20
    found = [only(spans, name) for name in PARTS]
    assert {span.parent_id for span in found} == {root.span_id}
    times = [at for span in found for at in (span.began_at, span.ended_at)]
    # One ends where the next begins; a float of the time of day is exact to 0.24 us.
    assert all(later - earlier > -1e-6 for earlier, later in pairwise(times))
    assert root.began_at - 0.01 <= times[0]
    assert times[-1] <= root.ended_at + 0.01
    assert all(span.seconds > 0 for span in found)


def test_a_sequence_that_loses_its_kv_has_a_span_of_the_loss(
    daemon: Daemon, collector: Collector
) -> None:
    prompts = [[5 + number] * 60 for number in range(30)]
    before = daemon.metric("tdpipe_preemptions_total")
    ask_many(daemon, prompts)
    assert daemon.metric("tdpipe_preemptions_total") > before
    spans = collector.wait_for(lambda found: any(s.name == "preemption" for s in found))
    lost = next(span for span in spans if span.name == "preemption")
    assert lost.began_at < lost.events["recompute"] < lost.ended_at


def ask_many(daemon: Daemon, prompts: list[list[int]]) -> None:
    """Many requests at once, in traces of their own."""

    async def ask_all() -> None:
        async with httpx.AsyncClient(base_url=daemon.url, timeout=120) as client:
            bodies = [
                {"prompt": prompt, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
                for prompt in prompts
            ]
            answers = await asyncio.gather(
                *(client.post("/v1/completions", json=body) for body in bodies)
            )
        assert {answer.status_code for answer in answers} == {200}

    asyncio.run(ask_all())


@pytest.mark.parametrize("victim", ["stage", pytest.param("engine", marks=pytest.mark.long)])
def test_a_process_that_dies_meanwhile_is_a_span(
    victim: str, daemon: Daemon, collector: Collector
) -> None:
    name, trace_id = f"{victim} restart", f"{victim.encode().hex():0<32}"
    body = {"prompt": "Count to nine.\n", "max_tokens": 380, "temperature": 0, "stream": True}
    headers = {"traceparent": f"00-{trace_id}-{PARENT}-01"}
    body |= {"ignore_eos": True}
    url = f"{daemon.url}/v1/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=120) as answer:
        received = answer.iter_lines()
        assert any(line.startswith("data:") for line in received)
        daemon.descendants()[victim][0].send_signal(signal.SIGKILL)
        assert [line for line in received if line][-1] == "data: [DONE]"
    spans = collector.trace(trace_id, *PARTS, name)
    lost = only(spans, name)
    assert lost.parent_id == only(spans, "decode").span_id
    assert lost.began_at < lost.events["recompute"] <= lost.ended_at
    assert root_of(spans).attributes["gen_ai.usage.output_tokens"] == 380
    daemon.wait_ready()


def test_a_router_s_spans_are_above_those_of_its_instance(
    daemon: Daemon, collector: Collector, tmp_path: Path
) -> None:
    trace_id = TRACE[::-1]
    arguments = [*instances_of(daemon.url), "--otlp-traces-endpoint", collector.url]
    with Router(tmp_path, *arguments) as router:
        answer = ask(router.url, trace_id)
    spans = collector.trace(trace_id, *PARTS, "POST", "wait for instance")
    above, below = root_of(spans, "tdpipe-router"), root_of(spans)
    attempt = only(spans, "POST")
    assert above.name == "POST /v1/completions"
    assert above.parent_id == PARENT
    assert attempt.parent_id == only(spans, "wait for instance").parent_id == above.span_id
    assert below.parent_id == attempt.span_id
    assert attempt.attributes["http.response.status_code"] == 200
    assert answer.headers.get_list("traceresponse") == [f"00-{trace_id}-{above.span_id}-01"]


@pytest.mark.long
def test_spans_are_sent_at_the_end_of_a_daemon_and_a_collector_may_be_gone(tmp_path: Path) -> None:
    with socket.socket() as taken:  # nothing listens there yet
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        endpoint = f"http://127.0.0.1:{port}"
        with Daemon(tmp_path, *SETTINGS, "--otlp-traces-endpoint", endpoint) as late:
            assert ask(late.url, TRACE, 4).status_code == 200
            late.wait_for(lambda: "traces: " in late.log())
            taken.close()
            with collecting(port) as collector:
                last = ask(late.url, PARENT * 2, 4)
                assert last.status_code == 200
                late.process.send_signal(signal.SIGTERM)
                assert late.wait_end() == 0
                assert "decode" in {span.name for span in collector.spans}
        assert late.log().count("traces: ") == 1
        assert "Traceback" not in late.log()
