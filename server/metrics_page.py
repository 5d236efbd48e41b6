"""The metrics page: Prometheus' text format, with the model's name on every sample of ours."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.version import VERSION

MODEL_LABEL = "model_name"
"""The label of the model's name, as in vLLM."""


class MetricsPage:
    """The metrics of `registry`, those of the server's process (`process_*`), and the build."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._page = CollectorRegistry()
        registry.register(_BuildInfo())
        self._page.register(_Labelled(registry, model_name))
        ProcessCollector(registry=self._page)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._page)


class _Labelled(Collector):
    """The metrics of a registry, each sample with the name of the model."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._registry, self._label = registry, {MODEL_LABEL: model_name}

    def describe(self) -> list[Metric]:
        """None: they need not be collected once in advance."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the registry."""
        for metric in self._registry.collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, **self._label})
                for sample in metric.samples
            ]
            yield metric


class _BuildInfo(Collector):
    """`tdpipe_build_info`: the versions of what serves."""

    def __init__(self) -> None:
        self._labels = {"version": VERSION, "python_version": platform.python_version()}
        for library in ("torch", "transformers"):  # not imported: torch takes seconds
            self._labels[f"{library}_version"] = _version(library)

    def describe(self) -> list[Metric]:
        """None: they need not be collected once in advance."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the one metric, which is always 1."""
        yield InfoMetricFamily("tdpipe_build", "1; the labels are the versions", value=self._labels)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
