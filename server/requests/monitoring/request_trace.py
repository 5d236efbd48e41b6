"""The trace of a request: a span for the request, and spans for the parts of its sequences.

    chat MODEL (server)      from the request's head to its last byte
      prepare                read, parse, render, tokenize and check
      queue                  per sequence: until its first tokens are fed
      prefill                until its first token
      decode                 until its end
        preemption, stage restart, engine restart

Attributes have the names of OpenTelemetry's conventions for HTTP and for generative AI; those that
begin with `tdpipe.` are ours. None of them has the text of a prompt or an answer.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from daemon.observability.tracing import (
    Attributes,
    Header,
    Tracing,
    WallClock,
    headers_of,
    trace_id_of,
)
from server.requests.planning.plan import Plan
from server.requests.sequence_parts import Part

PROVIDER = "tdpipe"
MAX_TRACED_SEQUENCES = 32
"""A request may have thousands of sequences, and the queue of spans holds 2,048."""
_OPERATIONS = {
    "/v1/completions": ("text_completion", "completions"),
    "/v1/chat/completions": ("chat", "chat_completions"),
    "/v1/responses": ("chat", "responses"),
}
"""By path, the operation in the conventions for generative AI, and the API in those for OpenAI."""
_FAILURES = ("error", "timeout")


class RequestTrace:
    """The span of one request that is sampled."""

    def __init__(self, tracing: Tracing, span: Span, operation: str) -> None:
        self._tracing, self._span, self._operation = tracing, span, operation
        self._clock = WallClock()
        self._began_at = time.monotonic()

    @classmethod
    def begin(
        cls,
        tracing: Tracing,
        path: str,
        headers: Iterable[Header] = (),
        attributes: Attributes | None = None,
        kind: SpanKind = SpanKind.SERVER,
    ) -> "RequestTrace | None":
        """Begin the trace of a request to `path`; None if the sampler leaves it out."""
        operation, api = _OPERATIONS[path]
        own = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "openai.api.type": api,
            **(attributes or {}),
        }
        span = tracing.start(operation, headers, own, kind)
        return cls(tracing, span, operation) if span.is_recording() else None

    @property
    def trace_id(self) -> str:
        """The id of the trace, for log lines."""
        return trace_id_of(self._span)

    @property
    def response_header(self) -> Header:
        """The header that tells the client of this span (`traceresponse`, a W3C draft)."""
        return b"traceresponse", dict(headers_of(self._span))[b"traceparent"]

    def prepared(self, plan: Plan, prepared_at: float) -> None:
        """The request is valid, and is submitted next."""
        self._span.update_name(f"{self._operation} {plan.model}")
        self._span.set_attributes(_attributes_of(plan))
        self._part("prepare", self._began_at, prepared_at)

    def replied(self, reply_id: str, *, stream: bool) -> None:
        """The id of the answer is known, and how it is written."""
        self._span.set_attribute("gen_ai.response.id", reply_id)
        self._span.set_attribute("gen_ai.request.stream", stream)

    def sequence_ended(self, parts: Iterable[Part], attributes: Attributes) -> None:
        """Make the spans of a sequence that has ended."""
        for part in parts:
            self._part(part.name, part.began_at, part.ended_at, attributes, part)

    def generated(
        self, usage: dict[str, Any], reasons: Sequence[str], first_token_at: float | None
    ) -> None:
        """All sequences have ended, or were aborted."""
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self._span.set_attributes(
            {
                "gen_ai.usage.input_tokens": usage["prompt_tokens"],
                "gen_ai.usage.output_tokens": usage["completion_tokens"],
                "gen_ai.usage.cache_read.input_tokens": cached,
                "gen_ai.response.finish_reasons": list(reasons[:MAX_TRACED_SEQUENCES]),
            }
        )
        if first_token_at is not None:
            seconds = first_token_at - self._began_at
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)

    def end(self, status: int, outcome: str) -> None:
        """The response has ended with this status in the access log."""
        self._span.set_attribute("http.response.status_code", status)
        self._span.set_attribute("tdpipe.outcome", outcome)
        if status >= 500 or outcome in _FAILURES:
            self._span.set_attribute("error.type", outcome if outcome in _FAILURES else str(status))
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def _part(
        self,
        name: str,
        began_at: float,
        ended_at: float,
        attributes: Attributes | None = None,
        part: Part | None = None,
    ) -> None:
        ns = self._clock.ns
        span = self._tracing.child(self._span, name, attributes, began_ns=ns(began_at))
        for loss in part.losses if part else ():
            lost = self._tracing.child(span, loss.name, attributes, began_ns=ns(loss.began_at))
            if loss.fed_at is not None:
                lost.add_event("recompute", timestamp=ns(loss.fed_at))
            lost.end(ns(loss.ended_at))
        span.end(ns(ended_at))


def _attributes_of(plan: Plan) -> dict[str, str | int | float | bool]:
    sampling = plan.sampling
    attributes: dict[str, str | int | float | bool] = {
        "gen_ai.request.model": plan.model,
        "gen_ai.response.model": plan.model,
        "gen_ai.request.max_tokens": max(plan.max_tokens),
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.choice.count": plan.n,
        "tdpipe.request.prompts": len(plan.prompts),
        "tdpipe.request.offline": plan.offline,
        "tdpipe.request.low_priority": plan.low_priority,
    }
    if plan.seed is not None and plan.seed < 2**63:  # an integer of OTLP
        attributes["gen_ai.request.seed"] = plan.seed
    return attributes
