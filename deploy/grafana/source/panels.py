"""Panels: what each of them shows, and Grafana's JSON for it.

Queries are PromQL with three words that are replaced, so that they can be read and tried:
`{DAEMON}` selects the daemons and `{ROUTER}` the routers that the dashboard's variables name, and
`[RATE]` is Grafana's own choice of a window that holds at least four scrapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

_REPLACED = {
    "DAEMON": 'model_name=~"$model",instance=~"$instance"',
    "ROUTER": 'instance=~"$router"',
    "RATE": "$__rate_interval",
}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

# Units, in Grafana's names.
SECONDS, BYTES, RATIO, COUNT = "s", "bytes", "percentunit", "short"
PER_SECOND, REQUESTS_PER_SECOND = "cps", "reqps"


@dataclass(frozen=True)
class Query:
    """One PromQL query of a panel; `legend` names its series, with `{{label}}` for a label."""

    expr: str
    legend: str

    def json(self, number: int, *, is_instant: bool) -> Json:
        """Grafana's target; `number` gives it a letter."""
        return {
            "refId": "ABCDEFGH"[number],
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": filled_in(self.expr),
            "legendFormat": self.legend,
            "instant": is_instant,
            "range": not is_instant,
        }


@dataclass(frozen=True)
class Panel:
    """A panel of one of Grafana's types, `width` of 24 columns wide."""

    type: str
    title: str
    description: str
    queries: Sequence[Query]
    width: int
    height: int
    field: Json
    options: Json

    def json(self, number: int, x: int, y: int) -> Json:
        """Grafana's panel with this id at this place."""
        is_instant = self.type == "stat"
        return {
            "id": number,
            "type": self.type,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [
                query.json(place, is_instant=is_instant) for place, query in enumerate(self.queries)
            ],
            "fieldConfig": {"defaults": self.field, "overrides": []},
            "options": self.options,
        }


def graph(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    *,
    width: int = 8,
    is_stacked: bool = False,
    is_signed: bool = False,
    maximum: float | None = None,
) -> Panel:
    """Lines over time, stacked if they are parts of a whole; they begin at 0 unless signed."""
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 40 if is_stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if is_stacked else "none", "group": "A"},
    }
    bounds = {"min": None if is_signed else 0, "max": maximum}
    field = {
        "unit": unit,
        "color": {"mode": "palette-classic"},
        "custom": custom,
        **{key: value for key, value in bounds.items() if value is not None},
    }
    return Panel("timeseries", title, description, queries, width, 8, field, _GRAPH_OPTIONS)


def stat(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    *,
    width: int = 3,
    height: int = 4,
    bounds: Sequence[tuple[float | None, str]] = ((None, "blue"),),
    shows_names: bool = False,
) -> Panel:
    """The newest values in large figures, or only the names of the series.

    The colours have lower bounds; the first one has none.
    """
    steps = [{"value": value, "color": color} for value, color in bounds]
    field = {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    options = {**_STAT_OPTIONS, "textMode": "name" if shows_names else "value"}
    return Panel("stat", title, description, queries, width, height, field, options)


_GRAPH_OPTIONS: Json = {
    "legend": {
        "showLegend": True,
        "displayMode": "table",
        "placement": "bottom",
        "calcs": ["mean", "max", "lastNotNull"],
    },
    "tooltip": {"mode": "multi", "sort": "desc"},
}
_STAT_OPTIONS: Json = {
    "colorMode": "value",
    "graphMode": "none",
    "justifyMode": "auto",
    "orientation": "auto",
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
}


def filled_in(expr: str) -> str:
    """PromQL with the words of this module replaced."""
    for word, meaning in _REPLACED.items():
        expr = expr.replace(word, meaning)
    return expr


def quantiles(histogram: str, selector: str, *shares: float) -> list[Query]:
    """Quantiles of a histogram over all of its series that `selector` selects."""
    buckets = f"sum by (le) (rate({histogram}_bucket{{{selector}}}[RATE]))"
    return [
        Query(f"histogram_quantile({share}, {buckets})", f"p{share * 100:g}") for share in shares
    ]


def mean(histogram: str, selector: str, by: str) -> str:
    """The mean of a histogram by a label."""
    total, count = (
        f"sum by ({by}) (rate({histogram}_{part}{{{selector}}}[RATE]))" for part in ("sum", "count")
    )
    return f"{total} / {count}"
