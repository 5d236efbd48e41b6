"""PromQL in rules and dashboards: which of our metrics it reads, and those that the docs list."""

import re

from tests.deploy.tools import ROOT

_METRIC = re.compile(r"(?<![\w:\"])(?:tdpipe|process)_\w+(?![\w:])")
_HISTOGRAM_PARTS = re.compile(r"_(?:bucket|sum|count)$")


def metrics_read(expr: str) -> set[str]:
    """The names of our metrics in a query; a histogram's without `_bucket`, `_sum`, `_count`."""
    types = documented()
    return {
        base if types.get(base := _HISTOGRAM_PARTS.sub("", name)) == "histogram" else name
        for name in _METRIC.findall(expr)
    }


def documented() -> dict[str, str]:
    """The types of the metrics that docs/metrics.md and docs/router.md list, by name."""
    text = "".join((ROOT / "docs" / page).read_text() for page in ("metrics.md", "router.md"))
    return dict(re.findall(r"^\| `((?:tdpipe|process)_\w+)`[^|]*\| (\w+) \|", text, re.MULTILINE))
