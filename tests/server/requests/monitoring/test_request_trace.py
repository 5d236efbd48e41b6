"""The trace of a request: its spans and their attributes, through a served app."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.schema.tracing import TracingConfig
from daemon.observability import tracing
from daemon.observability.tracing import Tracing
from server.requests.monitoring.request_trace import MAX_TRACED_SEQUENCES
from tests.collector import Collector, collecting, only
from tests.server.world import MODEL, generated, saying, serving
from wire.messages import Finished, Milestone, Submit, ToServer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture
def traces(collector: Collector) -> Iterator[Tracing]:
    made = tracing.begin(TracingConfig(otlp_traces_endpoint=collector.url), "tdpipe")
    assert made is not None
    yield made
    made.close()


def answers(submit: Submit) -> list[ToServer]:
    """A script: two tokens, with the milestones of a traced sequence."""
    if not submit.traced:
        return saying("hello")(submit)
    number, now = submit.sequence_id, time.monotonic()
    return [
        Milestone(number, "scheduled", now),
        Milestone(number, "sampled", now + 0.001),
        generated(number, 5),
        Milestone(number, "preempted", now + 0.002),
        Milestone(number, "scheduled", now + 0.003),
        Milestone(number, "sampled", now + 0.004),
        generated(number, 6),
        Finished(number, "length"),
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span_below_the_client_s_with_its_parts_below_it(
    stream: bool, tmp_path: Path, collector: Collector, traces: Tracing
) -> None:
    with serving(tmp_path, answers, tracing=traces) as daemon:
        body = {"model": MODEL, "prompt": "hi", "max_tokens": 2, "stream": stream, "seed": 5}
        answer = daemon.http.post(f"{daemon.url}/v1/completions", json=body, headers=TRACEPARENT)
    traces.close()
    spans = collector.trace(TRACE, f"text_completion {MODEL}", "decode")
    root = only(spans, f"text_completion {MODEL}")
    assert root.parent_id == PARENT
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{root.span_id}-01"
    parts = ["prepare", "queue", "prefill", "decode"]
    assert {span.name for span in spans if span.parent_id == root.span_id} == {*parts}
    found = [only(spans, name) for name in parts]
    times = [at for span in found for at in (span.began_at, span.ended_at)]
    assert times == sorted(times)
    lost = only(spans, "preemption")
    assert lost.parent_id == only(spans, "decode").span_id
    assert lost.seconds == pytest.approx(0.002, abs=1e-4)
    assert lost.events["recompute"] == pytest.approx(lost.began_at + 0.001, abs=1e-4)
    wanted = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 2,
        "gen_ai.request.seed": 5,
        "gen_ai.request.stream": stream,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ["length"],
        "http.response.status_code": 200,
        "client.address": "127.0.0.1",
        "tdpipe.request.id": answer.headers["x-request-id"],
        "tdpipe.outcome": "success",
    }
    assert wanted.items() <= root.attributes.items()
    assert root.attributes["gen_ai.response.time_to_first_chunk"] > 0
    assert not root.is_error


def test_no_span_has_the_text_of_a_prompt_or_an_answer(
    tmp_path: Path, collector: Collector, traces: Tracing
) -> None:
    with serving(tmp_path, saying("an answer"), tracing=traces) as daemon:
        daemon.complete(prompt="a secret", stop=["another"])
    traces.close()
    told = json.dumps([span.attributes for span in collector.spans])
    assert "text_completion" in told
    assert not any(word in told for word in ("secret", "another", "answer"))


def test_a_refused_request_has_a_span_with_its_status(
    tmp_path: Path, collector: Collector, traces: Tracing
) -> None:
    with serving(tmp_path, tracing=traces) as daemon:
        assert daemon.complete(n=0).status_code == 400
    traces.close()
    root = only(collector.spans, "text_completion")
    assert root.attributes["http.response.status_code"] == 400
    assert root.attributes["tdpipe.outcome"] == "invalid"
    assert not root.is_error  # it is the client's


def test_a_request_that_fails_in_the_server_is_an_error(
    tmp_path: Path, collector: Collector, traces: Tracing
) -> None:
    def fails(submit: Submit) -> list[ToServer]:
        return [generated(submit.sequence_id, 5), Finished(submit.sequence_id, "error", "broken")]

    with serving(tmp_path, fails, tracing=traces) as daemon:
        daemon.complete(stream=True)
    traces.close()
    root = only(collector.spans, f"text_completion {MODEL}")
    assert (root.is_error, root.attributes["error.type"]) == (True, "error")


def test_a_client_that_leaves_ends_its_spans(
    tmp_path: Path, collector: Collector, traces: Tracing
) -> None:
    with serving(tmp_path, tracing=traces) as daemon:
        body = {"model": MODEL, "prompt": "hi", "stream": True}
        with daemon.http.stream("POST", f"{daemon.url}/v1/completions", json=body):
            daemon.engine.wait_for(Submit)
        daemon.wait_until(lambda: not daemon.drain.num_open)
    traces.close()
    root = only(collector.spans, f"text_completion {MODEL}")
    assert root.attributes["http.response.status_code"] == 499
    assert root.attributes["tdpipe.outcome"] == "disconnect"
    assert root.attributes["gen_ai.response.finish_reasons"] == ["aborted"]
    assert only(collector.spans, "queue").parent_id == root.span_id


def test_a_client_that_is_not_sampled_costs_the_engine_nothing(
    tmp_path: Path, collector: Collector, traces: Tracing
) -> None:
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    with serving(tmp_path, answers, tracing=traces) as daemon:
        body = {"model": MODEL, "prompt": "hi"}
        answer = daemon.http.post(f"{daemon.url}/v1/completions", json=body, headers=unsampled)
        (submit,) = daemon.engine.wait_for(Submit)
    traces.close()
    assert not submit.traced
    assert "traceresponse" not in answer.headers
    assert collector.spans == []


def test_of_many_sequences_the_first_ones_have_spans(
    tmp_path: Path, collector: Collector, traces: Tracing
) -> None:
    count = MAX_TRACED_SEQUENCES + 3
    with serving(tmp_path, answers, tracing=traces) as daemon:
        assert daemon.complete(n=count, max_tokens=2).status_code == 200
        submits = daemon.engine.wait_for(Submit, count)
    traces.close()
    assert sum(submit.traced for submit in submits) == MAX_TRACED_SEQUENCES
    decodes = [span for span in collector.spans if span.name == "decode"]
    numbers = sorted(span.attributes["tdpipe.sequence.index"] for span in decodes)
    assert numbers == list(range(MAX_TRACED_SEQUENCES))


def test_a_line_of_a_batch_has_a_trace_of_its_own(
    tmp_path: Path, collector: Collector, traces: Tracing
) -> None:
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": MODEL, "prompt": "hi", "max_tokens": 2},
        }
        for number in range(2)
    ]
    with serving(tmp_path, answers, tracing=traces) as daemon:
        content = "\n".join(map(json.dumps, lines)).encode()
        uploaded = daemon.http.post(
            f"{daemon.url}/v1/files", files={"file": content}, data={"purpose": "batch"}
        )
        made = {"input_file_id": uploaded.json()["id"], "endpoint": "/v1/completions"}
        made["completion_window"] = "24h"
        batch = daemon.http.post(f"{daemon.url}/v1/batches", json=made).json()
        path = f"/v1/batches/{batch['id']}"
        daemon.wait_until(lambda: daemon.get(path).json()["status"] == "completed")
    traces.close()
    roots = [span for span in collector.spans if span.name == f"text_completion {MODEL}"]
    assert len({span.trace_id for span in roots}) == len(roots) == 2
    assert {span.parent_id for span in roots} == {""}
    ids = {span.attributes["tdpipe.batch.custom_id"] for span in roots}
    assert ids == {"line-0", "line-1"}
