"""Metrics of the engine and its stages, taken from the engine's last `Stats`."""

import time
from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.requests.engine_client import EngineClient
from wire.messages import EngineReady, Stats


class EngineCollector(Collector):
    """Reads the engine client at each scrape."""

    def __init__(self, client: EngineClient) -> None:
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
        if client.ready is not None:
            yield _attention(client.ready)
        if client.stats is not None:
            yield from _scheduler_figures(client.stats)
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
        "tdpipe_culprits",
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


def _stage_figures(client: EngineClient, stats: Stats) -> Iterator[Metric]:
    busy = CounterMetricFamily(
        "tdpipe_stage_busy_seconds", "Seconds spent in forward passes", labels=["stage"]
    )
    steps = CounterMetricFamily("tdpipe_stage_steps", "Forward passes", labels=["stage"])
    age = GaugeMetricFamily(
        "tdpipe_stage_heartbeat_age_seconds", "Seconds since the last heartbeat", labels=["stage"]
    )
    bubbles = GaugeMetricFamily(
        "tdpipe_stage_bubble_ratio",
        "Idle share: 1 - busy / wall time since the pipeline was ready",
        labels=["stage"],
    )
    costs = GaugeMetricFamily(
        "tdpipe_cost_model_ratio",
        "Predicted over measured seconds of the last steps",
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
    """Return the idle share (0 to 1) of the time since the pipeline was ready, for each stage."""
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
