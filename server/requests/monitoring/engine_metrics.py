"""Metrics of the engine and its stages, taken from the engine's last `Stats`."""

import time
from collections.abc import Iterator
from itertools import accumulate
from typing import Protocol

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from wire.histogram import Histogram, HistogramFigures
from wire.messages import EngineReady, Stats

# Parts of a sequence's time, and what they are.
_REQUEST_TIMES = {
    "queue": "From a sequence's arrival in the engine to its first step",
    "prefill": "From a sequence's first step to its first token",
    "decode": "From a sequence's first token to its end",
}


class EngineFigures(Protocol):
    """What is exported of the engine client."""

    num_generated: int
    num_engines_lost: int
    inter_token_latency: Histogram
    stats_at: float

    @property
    def num_queued(self) -> int:
        """Sequences without a first token."""

    @property
    def num_queued_tokens(self) -> int:
        """Their prompt tokens."""

    @property
    def is_ready(self) -> bool:
        """Whether requests are being scheduled."""

    @property
    def ready(self) -> EngineReady | None:
        """The engine's last report that all stages are ready."""

    @property
    def stats(self) -> Stats | None:
        """The engine's last counters."""


class EngineCollector(Collector):
    """Reads the engine client at each scrape."""

    def __init__(self, client: EngineFigures) -> None:
        self._client = client

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the engine, its stages and the engine client."""
        client = self._client
        yield _counter("tdpipe_generated_tokens", "Tokens generated", client.num_generated)
        yield _gauge(
            "tdpipe_queued_sequences", "Sequences without a first token", client.num_queued
        )
        yield _gauge(
            "tdpipe_queued_prompt_tokens",
            "Prompt tokens of sequences without a first token",
            client.num_queued_tokens,
        )
        yield _gauge("tdpipe_ready", "1 while requests are being scheduled", int(client.is_ready))
        yield _counter(
            "tdpipe_engine_restarts",
            "Engine processes that replaced a lost one",
            client.num_engines_lost,
        )
        inter_token = HistogramMetricFamily(
            "tdpipe_inter_token_latency_seconds",
            "Between the arrivals of two consecutive tokens of a sequence at the server",
        )
        _add_histogram(inter_token, [], client.inter_token_latency.figures())
        yield inter_token
        if client.ready is not None:
            yield _attention(client.ready)
        if client.stats is not None:
            yield from _scheduler_figures(client.stats)
            yield from _phase_figures(client.stats)
            yield from _request_times(client.stats)
            yield from _losses(client.stats)
            yield from _stage_figures(client, client.stats)


def _attention(ready: EngineReady) -> Metric:
    metric = GaugeMetricFamily(
        "tdpipe_stage_attention_backend",
        "1 for the attention backend of each stage",
        labels=["stage", "backend"],
    )
    for stage, backend in enumerate(ready.attention):
        metric.add_metric([str(stage), backend], 1)
    return metric


def _scheduler_figures(stats: Stats) -> Iterator[Metric]:
    phase = GaugeMetricFamily(
        "tdpipe_phase", "1 for the scheduler's current phase", labels=["phase"]
    )
    for name in ("prefill", "decode"):
        phase.add_metric([name], int(stats.phase == name))
    yield phase
    yield _gauge(
        "tdpipe_waiting_sequences", "Sequences in the engine without KV blocks", stats.waiting
    )
    yield _gauge("tdpipe_live_sequences", "Sequences that hold KV blocks", stats.live)
    yield _gauge("tdpipe_in_flight_micro_batches", "Steps in the pipeline", stats.in_flight)
    yield _gauge("tdpipe_kv_blocks_used", "KV blocks in use", stats.blocks_used)
    yield _gauge("tdpipe_kv_blocks", "KV blocks in total", stats.blocks_total)
    yield _gauge("tdpipe_engine_uptime_seconds", "Age of the engine process", stats.uptime_s)
    yield _counter(
        "tdpipe_phase_switches", "Switches between prefill and decode phases", stats.switches
    )
    yield _counter(
        "tdpipe_work_steals",
        "Rows moved between decode micro-batches (work stealing)",
        stats.steals,
    )
    yield _counter(
        "tdpipe_topups", "Decode steps that prompts were added to (top-ups)", stats.topups
    )
    yield _counter(
        "tdpipe_topup_tokens", "Prompt tokens that were added to decode steps", stats.topup_tokens
    )
    yield _counter("tdpipe_preemptions", "Preempted sequences", stats.preemptions)
    yield _counter(
        "tdpipe_prefilled_tokens",
        "Prompt tokens of sequences that the engine accepted",
        stats.prompt_tokens,
    )
    yield _counter(
        "tdpipe_recomputed_tokens",
        "Tokens recomputed after preemptions and restarts",
        stats.recomputed_tokens,
    )
    yield _counter(
        "tdpipe_prefix_cache_queries",
        "Tokens of admitted sequences, looked up in the prefix cache",
        stats.prefix_queries,
    )
    yield _counter(
        "tdpipe_prefix_cache_hits",
        "Tokens of admitted sequences that were in the prefix cache",
        stats.prefix_hits,
    )
    yield _counter("tdpipe_steps", "Micro-batches through all stages", stats.steps)
    yield _counter("tdpipe_pipeline_restarts", "Restarts of the pipeline's stages", stats.restarts)
    yield _counter(
        "tdpipe_poison_requests",
        "Poison requests: ended with an error because a stage failed each time",
        stats.poison_requests,
    )
    yield _counter(
        "tdpipe_dropped_messages",
        "Messages and peers rejected by the engine's sockets",
        stats.dropped,
    )
    yield _counter(
        "tdpipe_scheduler_busy_seconds",
        "Seconds in which the engine process was busy",
        stats.busy_s,
    )


def _phase_figures(stats: Stats) -> Iterator[Metric]:
    seconds = CounterMetricFamily(
        "tdpipe_phase_seconds", "Seconds with a step in flight, by phase", labels=["phase"]
    )
    for phase, phase_s in stats.phase_s.items():
        seconds.add_metric([phase], phase_s)
    costs = HistogramMetricFamily(
        "tdpipe_phase_switch_cost_seconds",
        "Bubble seconds of a stage in the first S steps after a phase switch, mean of the stages",
        labels=["phase"],
    )
    for phase, figures in stats.switch_costs.items():
        _add_histogram(costs, [phase], figures)
    yield from (seconds, costs)


def _request_times(stats: Stats) -> Iterator[Metric]:
    for part, text in _REQUEST_TIMES.items():
        metric = HistogramMetricFamily(f"tdpipe_request_{part}_time_seconds", text)
        if part in stats.request_times:
            _add_histogram(metric, [], stats.request_times[part])
        yield metric


def _losses(stats: Stats) -> Iterator[Metric]:
    counts = CounterMetricFamily(
        "tdpipe_stage_losses",
        "Losses of the stages by the stage that caused them, by cause and by signal or exit code",
        labels=["stage", "cause", "code"],
    )
    for loss in stats.losses:
        counts.add_metric([_stage_label(loss.stage), loss.cause, loss.code], loss.count)
    last = GaugeMetricFamily(
        "tdpipe_last_stage_loss_timestamp_seconds",
        "Unix time of the newest loss of the stages, with the process that caused it",
        labels=["stage", "pid", "cause", "code"],
    )
    newest = stats.last_loss
    if newest is not None:
        pid = str(newest.pid) if newest.pid else ""
        labels = [_stage_label(newest.stage), pid, newest.cause, newest.code]
        last.add_metric(labels, newest.at)
    yield from (counts, last)
    yield _counter(
        "tdpipe_stage_starved_seconds",
        "Seconds in which a stage without progress was starved of CPU, and not taken for lost",
        stats.starved_s,
    )


def _stage_label(stage: int) -> str:
    """The stage's number, or nothing if no stage is known to be the cause."""
    return str(stage) if stage >= 0 else ""


def _stage_figures(client: EngineFigures, stats: Stats) -> Iterator[Metric]:
    steps = CounterMetricFamily("tdpipe_stage_steps", "Forward passes", labels=["stage"])
    age = GaugeMetricFamily(
        "tdpipe_stage_heartbeat_age_seconds", "Seconds since the last heartbeat", labels=["stage"]
    )
    costs = GaugeMetricFamily(
        "tdpipe_cost_model_ratio",
        "Predicted over measured seconds of the last steps",
        labels=["stage"],
    )
    since_stats = time.monotonic() - client.stats_at
    for stage in stats.stages:
        labels = [str(stage.stage)]
        steps.add_metric(labels, stage.steps)
        if stage.cost_ratio:
            costs.add_metric(labels, stage.cost_ratio)
        age.add_metric(labels, stage.heartbeat_age_s + since_stats)
    yield from (steps, age, costs, *_stage_times(stats))


def _stage_times(stats: Stats) -> Iterator[Metric]:
    """Busy and bubble seconds of the stages, without those that only time launches of kernels."""
    busy = CounterMetricFamily(
        "tdpipe_stage_busy_seconds", "Seconds spent in forward passes", labels=["stage"]
    )
    bubbles = CounterMetricFamily(
        "tdpipe_stage_bubble_seconds",
        "Seconds without a forward pass while any step was in flight",
        labels=["stage"],
    )
    for stage in stats.stages:
        if stage.has_exact_times:
            busy.add_metric([str(stage.stage)], stage.busy_s)
            bubbles.add_metric([str(stage.stage)], stage.bubble_s)
    yield from (busy, bubbles)


def _add_histogram(
    metric: HistogramMetricFamily, labels: list[str], figures: HistogramFigures
) -> None:
    bounds = [*(str(float(bound)) for bound in figures.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(figures.counts), strict=True))
    metric.add_metric(labels, buckets, figures.total)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
