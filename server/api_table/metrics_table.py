"""Writes the table of metrics in docs/metrics.md: `make metrics-table`."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from configs.document_tables import DOCUMENTS, cell, write_table
from server.metrics import Metrics
from server.metrics_page import MODEL_LABEL
from server.requests.monitoring.engine_metrics import EngineCollector
from wire.histogram import TOKEN_S, Histogram
from wire.messages import EngineReady, StageStats, Stats

DOCUMENT, TARGET = DOCUMENTS / "metrics.md", "metrics-table"

# Groups of the table, and the prefixes of their metrics, both in order; the longest prefix counts.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "": ("tdpipe_build", "tdpipe_ready"),
    "Requests": (
        *("tdpipe_requests", "tdpipe_invalid", "tdpipe_refused", "tdpipe_ignored", "tdpipe_batch"),
        *("tdpipe_prompt", "tdpipe_generated", "tdpipe_time_", "tdpipe_inter_token"),
        *("tdpipe_request_", "tdpipe_queued", "tdpipe_open_batches"),
    ),
    "Scheduler": (
        *("tdpipe_phase", "tdpipe_work_steals", "tdpipe_topup", "tdpipe_steps", "tdpipe_in_flight"),
        *("tdpipe_prefilled", "tdpipe_recomputed", "tdpipe_prefix_cache", "tdpipe_preemptions"),
        *("tdpipe_waiting", "tdpipe_live", "tdpipe_kv", "tdpipe_scheduler", "tdpipe_engine"),
        "tdpipe_",
    ),
    "Stages": ("tdpipe_stage_b", "tdpipe_stage_", "tdpipe_cost_model"),
    "Faults": (
        *("tdpipe_stage_losses", "tdpipe_last_stage_loss", "tdpipe_stage_starved"),
        *("tdpipe_pipeline_restarts", "tdpipe_engine_restarts", "tdpipe_poison", "tdpipe_dropped"),
    ),
    "Predictions ([predictions.md](predictions.md#accuracy-in-service))": (
        *("tdpipe_prediction", "tdpipe_predicted", "tdpipe_real_output", "tdpipe_predictor"),
    ),
    f"The server's process (on Linux, without `{MODEL_LABEL}`)": ("process_",),
}


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric as Prometheus names it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str

    def line(self) -> str:
        """The row of the table."""
        labels = ", ".join(f"`{label}`" for label in self.labels)
        return f"| `{self.name}` | {self.kind} | {labels} | {cell(self.meaning.rstrip('.'))} |"


def rows_of(registry: CollectorRegistry) -> list[MetricRow]:
    """The metrics of a registry, also those without a sample."""
    return [row for collector in registry._collector_to_names for row in _rows(collector)]


def table_of(rows: Iterable[MetricRow], groups: Mapping[str, tuple[str, ...]]) -> str:
    """The rows by groups, as Markdown."""
    prefixes = [(title, prefix) for title, each in groups.items() for prefix in each]
    found: dict[tuple[str, str], list[MetricRow]] = {place: [] for place in prefixes}
    for row in rows:
        fitting = [place for place in prefixes if row.name.startswith(place[1])]
        found[max(fitting, key=lambda place: len(place[1]))].append(row)
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for title in groups:
        members = [row for place, some in found.items() if place[0] == title for row in some]
        if title and members:
            lines.append(f"| **{title}** | | | |")
        lines += [row.line() for row in members]
    return "\n".join([*lines, ""])


def table() -> str:
    """The table of a daemon's metrics."""
    metrics = Metrics(EngineCollector(_Engine()), model_name="model")
    process = CollectorRegistry()
    ProcessCollector(registry=process)
    return table_of([*rows_of(metrics.registry), *rows_of(process)], GROUPS)


class _Engine:
    """An engine that has reported everything once: then every metric is on the page."""

    num_generated = num_engines_lost = num_queued = num_queued_tokens = 0
    inter_token_latency = Histogram(TOKEN_S)
    stats_at = 0.0
    is_ready = True
    ready = EngineReady(1, 1, 1, 1, attention=("plain",))
    stats = Stats(ready=True, phase="decode", stages=(StageStats(0, 1, 0.0, 0, 0, 0.0),))


def _rows(collector: object) -> Iterator[MetricRow]:
    if isinstance(collector, MetricWrapperBase):
        labels: Sequence[str] = collector._labelnames
        (family,) = collector.collect()
        yield _row(family, labels)
        return
    assert hasattr(collector, "collect")
    for family in collector.collect():
        yield _row(family, getattr(family, "_labelnames", ()))


def _row(family: Metric, labels: Sequence[str]) -> MetricRow:
    """The names of counters and infos get their suffixes only on the page."""
    if family.type == "info":
        labels = [label for sample in family.samples for label in sample.labels]
        return MetricRow(f"{family.name}_info", "gauge", tuple(labels), family.documentation)
    suffix = "_total" if family.type == "counter" else ""
    return MetricRow(family.name + suffix, family.type, tuple(labels), family.documentation)


def main() -> int:
    """Write the table into the document."""
    write_table(DOCUMENT, TARGET, table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
