"""Metrics in Prometheus' text format: the server's own, and the engine's from its last Stats."""

import time
from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.requests.engine_client import EngineClient
from wire.messages import Stats

_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_PER_TOKEN_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
_PREDICTOR_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_REQUEST_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)

# A time beside each counter, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

OUTCOMES = ("success", "error", "disconnect", "timeout", "refused")
BATCH_OUTCOMES = ("success", "error", "retry")


class Metrics:
    """All figures of one server; a request counts once, under one of `OUTCOMES`."""

    def __init__(self, client: EngineClient) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "tdpipe_requests", "Requests by outcome", ["outcome"], registry=self._registry
        )
        for outcome in OUTCOMES:
            self.requests.labels(outcome)
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
        self.request_duration = Histogram(
            "tdpipe_request_duration_seconds",
            "From the request's arrival to its last byte",
            buckets=_REQUEST_S,
            registry=self._registry,
        )
        self.batch_requests = Counter(
            "tdpipe_batch_requests",
            "Requests of batches by outcome; one that an engine has lost counts as a retry too",
            ["outcome"],
            registry=self._registry,
        )
        for outcome in BATCH_OUTCOMES:
            self.batch_requests.labels(outcome)
        self._add_predictions()
        self._registry.register(_EngineFigures(client))

    def _add_predictions(self) -> None:
        """How well output lengths are predicted, by who predicts and by class of lengths."""
        by_class = ["source", "length_class"]
        self.predictions = Counter(
            "tdpipe_predictions", "Ended sequences", by_class, registry=self._registry
        )
        self.predicted_tokens = Counter(
            "tdpipe_predicted_output_tokens",
            "Output tokens that were expected of them",
            by_class,
            registry=self._registry,
        )
        self.real_tokens = Counter(
            "tdpipe_real_output_tokens",
            "Output tokens that came",
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
            "From a question to the encoder to its answer",
            buckets=_PREDICTOR_S,
            registry=self._registry,
        )
        self.predictor_fallbacks = Counter(
            "tdpipe_predictor_fallbacks",
            "Ended sequences for which the encoder's answer had not come",
            registry=self._registry,
        )

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)


class _EngineFigures(Collector):
    """Reads the engine client at the moment of the scrape."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    def collect(self) -> Iterator[Metric]:
        """All figures that come from the engine, and those of its client."""
        client = self._client
        yield _counter("tdpipe_generated_tokens", "Tokens generated", client.num_generated)
        yield _gauge("tdpipe_queued_sequences", "Without a first token yet", client.num_queued)
        yield _gauge(
            "tdpipe_queued_prompt_tokens", "Tokens of their prompts", client.num_queued_tokens
        )
        yield _gauge("tdpipe_ready", "1 while requests are worked on", int(client.is_ready))
        yield _counter(
            "tdpipe_engine_restarts", "Times that another engine came", client.num_engines_lost
        )
        if client.stats is not None:
            yield from _scheduler_figures(client.stats)
            yield from _stage_figures(client, client.stats)


def _scheduler_figures(stats: Stats) -> Iterator[Metric]:
    phase = GaugeMetricFamily("tdpipe_phase", "1 for the scheduler's phase", labels=["phase"])
    for name in ("prefill", "decode"):
        phase.add_metric([name], int(stats.phase == name))
    yield phase
    yield _gauge("tdpipe_waiting_sequences", "In the engine without KV", stats.waiting)
    yield _gauge("tdpipe_live_sequences", "Holding KV", stats.live)
    yield _gauge("tdpipe_in_flight_micro_batches", "Steps in the pipeline", stats.in_flight)
    yield _gauge("tdpipe_kv_blocks_used", "KV blocks in use", stats.blocks_used)
    yield _gauge("tdpipe_kv_blocks", "KV blocks in all", stats.blocks_total)
    yield _gauge("tdpipe_engine_uptime_seconds", "Age of the engine process", stats.uptime_s)
    yield _counter("tdpipe_phase_switches", "Switches between the phases", stats.switches)
    yield _counter("tdpipe_work_steals", "Rows moved between micro-batches", stats.steals)
    yield _counter("tdpipe_preemptions", "Sequences that lost their KV", stats.preemptions)
    yield _counter(
        "tdpipe_prefilled_tokens", "Tokens of prompts that the engine took in", stats.prompt_tokens
    )
    yield _counter("tdpipe_recomputed_tokens", "Computed once more", stats.recomputed_tokens)
    yield _counter("tdpipe_steps", "Micro-batches through all stages", stats.steps)
    yield _counter("tdpipe_pipeline_restarts", "Times that the pipeline was lost", stats.restarts)
    yield _counter(
        "tdpipe_culprits", "Requests found out to end the stages each time", stats.poison_requests
    )
    yield _counter(
        "tdpipe_dropped_messages", "Of strangers, and strangers not let in", stats.dropped
    )
    yield _counter("tdpipe_scheduler_busy_seconds", "Engine process at work", stats.busy_s)


def _stage_figures(client: EngineClient, stats: Stats) -> Iterator[Metric]:
    busy = CounterMetricFamily("tdpipe_stage_busy_seconds", "Seconds in forwards", labels=["stage"])
    steps = CounterMetricFamily("tdpipe_stage_steps", "Forwards", labels=["stage"])
    age = GaugeMetricFamily(
        "tdpipe_stage_heartbeat_age_seconds", "Since the last heartbeat", labels=["stage"]
    )
    bubbles = GaugeMetricFamily(
        "tdpipe_stage_bubble_ratio", "1 - busy / wall since ready", labels=["stage"]
    )
    costs = GaugeMetricFamily(
        "tdpipe_cost_model_ratio",
        "Predicted over real seconds of the last steps",
        labels=["stage"],
    )
    since_stats = time.monotonic() - client.stats_at
    for stage in stats.stages:
        labels = [str(stage.stage)]
        busy.add_metric(labels, stage.busy_s)
        steps.add_metric(labels, stage.steps)
        if stage.cost_ratio:
            costs.add_metric(labels, stage.cost_ratio)
        age.add_metric(labels, stage.heartbeat_age_s + since_stats)
    for number, ratio in bubble_ratios(client).items():
        bubbles.add_metric([str(number)], ratio)
    yield from (busy, steps, age, bubbles, costs)


def bubble_ratios(client: EngineClient) -> dict[int, float]:
    """For each stage, the part of the time since the pipeline was ready that it stood idle."""
    stats, base = client.stats, client.work_at_ready
    if stats is None or base is None or client.stats_at <= base.since:
        return {}
    wall_s = client.stats_at - base.since
    ratios = {}
    for stage in stats.stages:
        busy_s = stage.busy_s - base.busy_s.get(stage.stage, 0.0)
        ratios[stage.stage] = min(1.0, max(0.0, 1 - busy_s / wall_s))
    return ratios


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
