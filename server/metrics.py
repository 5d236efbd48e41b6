"""Metrics in Prometheus' text format: the server's own, and those of other collectors.

The metrics of the engine and the stages are declared in
`server.requests.monitoring.engine_metrics`.
"""

import time
from collections import deque

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.registry import Collector

from server.http.errors import REFUSALS, ApiError
from server.metrics_page import MetricsPage

_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_PER_TOKEN_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
_PREDICTOR_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))  # as in vLLM
_REQUEST_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)

# Without this, each counter has a second sample with its creation time.
disable_created_metrics()  # type: ignore[no-untyped-call]

OUTCOMES = ("success", "error", "disconnect", "timeout", "invalid", "refused")
_OUTCOMES_BY_STATUS = {408: "timeout", 429: "refused", 500: "error", 503: "refused"}
BATCH_OUTCOMES = ("success", "error", "retry")
# Of the latest latencies, for the page at `/`: those of 30 s at 30 requests per second.
_NUM_LATEST = 1000


class Metrics:
    """The metrics of one server; a request counts once, under one of `OUTCOMES`."""

    def __init__(self, *collectors: Collector, model_name: str) -> None:
        """`collectors` are read at each scrape; every sample gets the label `model_name`."""
        self._registry = CollectorRegistry()
        self._page = MetricsPage(self._registry, model_name)
        for collector in collectors:
            self._registry.register(collector)
        self.requests = Counter(
            "tdpipe_requests",
            "Requests that have ended, by outcome",
            ["outcome"],
            registry=self._registry,
        )
        for outcome in OUTCOMES:
            self.requests.labels(outcome)
        self._add_errors()
        self.ignored_fields = Counter(
            "tdpipe_ignored_fields",
            "Unknown fields of requests, by the kind of object that contained them",
            ["object"],
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "tdpipe_prompt_tokens", "Tokens of admitted prompts", registry=self._registry
        )
        self.time_to_first_token = Histogram(
            "tdpipe_time_to_first_token_seconds",
            "From the request's arrival to a sequence's first token",
            buckets=_FIRST_TOKEN_S,
            registry=self._registry,
        )
        self.time_per_output_token = Histogram(
            "tdpipe_time_per_output_token_seconds",
            "Mean time between the tokens of a sequence",
            buckets=_PER_TOKEN_S,
            registry=self._registry,
        )
        # Each with the time at which it was observed.
        self.latest_first_tokens: deque[tuple[float, float]] = deque(maxlen=_NUM_LATEST)
        self.latest_per_token: deque[tuple[float, float]] = deque(maxlen=_NUM_LATEST)
        self.request_duration = Histogram(
            "tdpipe_request_duration_seconds",
            "From the request's arrival to its last byte",
            buckets=_REQUEST_S,
            registry=self._registry,
        )
        self.batch_requests = Counter(
            "tdpipe_batch_requests",
            "Requests of batches by outcome; each retry after a lost engine counts as well",
            ["outcome"],
            registry=self._registry,
        )
        for outcome in BATCH_OUTCOMES:
            self.batch_requests.labels(outcome)
        self.open_batches = Gauge(
            "tdpipe_open_batches", "Batches that have not ended", registry=self._registry
        )
        self._add_lengths()
        self._add_predictions()

    def observe_first_token(self, seconds: float) -> None:
        """Count the time to the first token of a sequence."""
        self.time_to_first_token.observe(seconds)
        self.latest_first_tokens.append((time.monotonic(), seconds))

    def observe_per_token(self, seconds: float) -> None:
        """Count the mean time between the tokens of a sequence that has ended."""
        self.time_per_output_token.observe(seconds)
        self.latest_per_token.append((time.monotonic(), seconds))

    def count_reason(self, error: ApiError) -> str:
        """Count why a request has no response but this error; returns its outcome."""
        outcome = _OUTCOMES_BY_STATUS.get(error.status, "invalid")
        if outcome == "refused":
            self.refused_requests.labels(error.reason).inc()
        elif outcome == "invalid":
            self.invalid_requests.labels(error.reason).inc()
        return outcome

    def _add_errors(self) -> None:
        """Refusals, which are the server's, apart from the errors of clients."""
        self.refused_requests = Counter(
            "tdpipe_refused_requests",
            "Valid requests that the server has refused (429, 503), by what was exhausted",
            ["reason"],
            registry=self._registry,
        )
        for reason in REFUSALS:
            self.refused_requests.labels(reason)
        self.invalid_requests = Counter(
            "tdpipe_invalid_requests",
            "Requests with an error of the client (4xx), by the code of the error",
            ["reason"],
            registry=self._registry,
        )

    def _add_lengths(self) -> None:
        self.request_prompt_tokens = Histogram(
            "tdpipe_request_prompt_tokens",
            "Tokens of each admitted prompt",
            buckets=_TOKENS,
            registry=self._registry,
        )
        self.request_generation_tokens = Histogram(
            "tdpipe_request_generation_tokens",
            "Tokens of each complete answer (choice)",
            buckets=_TOKENS,
            registry=self._registry,
        )

    def _add_predictions(self) -> None:
        """The quality of length predictions, by predictor and by class of lengths."""
        by_class = ["source", "length_class"]
        self.predictions = Counter(
            "tdpipe_predictions", "Ended sequences", by_class, registry=self._registry
        )
        self.predicted_tokens = Counter(
            "tdpipe_predicted_output_tokens",
            "Predicted output tokens of ended sequences",
            by_class,
            registry=self._registry,
        )
        self.real_tokens = Counter(
            "tdpipe_real_output_tokens",
            "Real output tokens of ended sequences",
            by_class,
            registry=self._registry,
        )
        self.prediction_error = Gauge(
            "tdpipe_prediction_sum_error_ratio",
            "(Predicted - real) / real of the sums over the last 256 ended sequences",
            registry=self._registry,
        )
        self.predictor_latency = Histogram(
            "tdpipe_predictor_latency_seconds",
            "From a request to the encoder to its prediction",
            buckets=_PREDICTOR_S,
            registry=self._registry,
        )
        self.predictor_fallbacks = Counter(
            "tdpipe_predictor_fallbacks",
            "Ended sequences whose prediction from the encoder had not arrived",
            registry=self._registry,
        )

    @property
    def registry(self) -> CollectorRegistry:
        """All metrics but those of the process, without the label of the model."""
        return self._registry

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return self._page.render()
