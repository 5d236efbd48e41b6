"""The router's metrics, in Prometheus' text format."""

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

_WAIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)

# Without this, each counter has a second sample with its creation time.
disable_created_metrics()  # type: ignore[no-untyped-call]

NO_INSTANCE = "none"
"""The label of requests that were not sent to any instance."""

_OUTCOMES = {408: "timeout", 429: "refused", 499: "disconnect", 503: "refused"}


def outcome_of(status: int) -> str:
    """The outcome of a request with this status, in the words of the daemon's metrics."""
    if status < 400:
        return "success"
    return _OUTCOMES.get(status, "invalid" if status < 500 else "error")


class Metrics:
    """The metrics of one router; a request counts once, for the instance that had it last."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "tdpipe_router_requests",
            "Requests by their last instance (none: not sent to any) and outcome",
            ["instance", "outcome"],
            registry=registry,
        )
        self.pending = Gauge(
            "tdpipe_router_pending_requests",
            "Requests without an instance, lines of batches too",
            registry=registry,
        )
        self.open_requests = Gauge(
            "tdpipe_router_open_requests",
            "Requests that an instance is answering",
            ["instance"],
            registry=registry,
        )
        self.wait = Histogram(
            "tdpipe_router_wait_seconds",
            "From an online request's arrival to the choice of its first instance",
            buckets=_WAIT_S,
            registry=registry,
        )
        self.retries = Counter(
            "tdpipe_router_retries",
            "Requests sent again because an instance failed or refused them",
            ["instance"],
            registry=registry,
        )
        self.resumptions = Counter(
            "tdpipe_router_resumptions",
            "Streams whose instance was lost: resumed, or impossible to resume",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("resumed", "impossible"):
            self.resumptions.labels(outcome)
        self.is_up = Gauge(
            "tdpipe_router_instance_up",
            "1 if an instance takes requests; 0 if it is lost, leaving, draining or not ready",
            ["instance"],
            registry=registry,
        )
        self._load = Gauge(
            "tdpipe_router_load",
            "Online load of the instances with these models; at 1, no time or no KV is left",
            ["models"],
            registry=registry,
        )
        self.losses = Counter(
            "tdpipe_router_instance_losses",
            "How often an instance became stale or did not answer",
            ["instance"],
            registry=registry,
        )
        self.batch_requests = Counter(
            "tdpipe_router_batch_requests",
            "Lines of batches: success, error; each retry counts as well",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("success", "error", "retry"):
            self.batch_requests.labels(outcome)
        self.open_batches = Gauge(
            "tdpipe_router_open_batches", "Batches that have not ended", registry=registry
        )
        self.kept_bytes = Gauge(
            "tdpipe_router_kept_bytes", "Events kept of open streams", registry=registry
        )
        ProcessCollector(registry=registry)

    def add_instance(self, instance: str) -> None:
        """Show an instance as not up; rates miss the first event of a series that is new."""
        for gauge in (self.is_up, self.open_requests):
            gauge.labels(instance).set(0)
        for counter in (self.losses, self.retries):
            counter.labels(instance)

    def show_load(self, models: Sequence[str], load: float | None) -> None:
        """Show the load of a fleet, or that it is not known."""
        label = ",".join(models)
        if load is None:
            self._load.remove(label)
        else:
            self._load.labels(label).set(load)

    def count_early(self, status: int) -> None:
        """Count a request that ended with this status before it was read."""
        self.requests.labels(NO_INSTANCE, outcome_of(status)).inc()

    def forget(self, instance: str) -> None:
        """Remove the gauges of an instance that is gone; its counters stay."""
        for gauge in (self.is_up, self.open_requests):
            gauge.remove(instance)

    @property
    def registry(self) -> CollectorRegistry:
        """All metrics, those of the process too."""
        return self._registry

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)
