"""A dashboard: rows of panels, the variables that select what they show, and marks for restarts."""

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.grafana.source.panels import DATASOURCE, Json, Panel, filled_in

_COLUMNS = 24
_TAG = "tdpipe"


@dataclass(frozen=True)
class Row:
    """Panels under a heading, placed from the left and wrapped at the edge."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """A choice of values of a label, all of them by default."""

    name: str
    label: str
    query: str

    def json(self) -> Json:
        """Grafana's variable; it is read again whenever the time range changes."""
        return {
            "type": "query",
            "name": self.name,
            "label": self.label,
            "datasource": DATASOURCE,
            "query": {"query": self.query, "refId": self.name},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
            "options": [],
        }


MODEL = Variable("model", "Model", "label_values(tdpipe_build_info, model_name)")
INSTANCE = Variable(
    "instance", "Instance", 'label_values(tdpipe_build_info{model_name=~"$model"}, instance)'
)
ROUTER = Variable("router", "Router", "label_values(tdpipe_router_pending_requests, instance)")


@dataclass(frozen=True)
class Dashboard:
    """One page of Grafana; `uid` is the end of its URL."""

    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Sequence[Row]

    def json(self) -> Json:
        """Grafana's dashboard, as its files are provisioned."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [_TAG],
            "schemaVersion": 39,
            "editable": True,
            "graphTooltip": 1,  # one crosshair over all panels
            "time": {"from": "now-1h", "to": "now"},
            "refresh": "30s",
            "timezone": "browser",
            "templating": {"list": [_DATASOURCES, *(each.json() for each in self.variables)]},
            "annotations": {"list": [_RESTARTS]},
            "links": [_LINKS],
            "panels": _placed(self.rows),
        }


_DATASOURCES: Json = {
    "type": "datasource",
    "name": "datasource",
    "label": "Data source",
    "query": "prometheus",
    "refresh": 1,
    "multi": False,
    "includeAll": False,
    "options": [],
}
_LINKS: Json = {
    "type": "dashboards",
    "title": "tdpipe",
    "tooltip": "The other dashboards, with the same time range and variables",
    "icon": "external link",
    "tags": [_TAG],
    "asDropdown": False,
    "targetBlank": False,
    "includeVars": True,
    "keepTime": True,
    "url": "",
}
_RESTARTED = "changes(tdpipe_pipeline_restarts_total{DAEMON}[RATE]) > 0"
_RESTARTS: Json = {
    "name": "Restarts",
    "datasource": DATASOURCE,
    "enable": True,
    "iconColor": "red",
    "target": {"refId": "Anno", "expr": filled_in(_RESTARTED), "interval": "15s"},
    "titleFormat": "stages restarted",
    "textFormat": "{{model_name}} at {{instance}}",
}


def _placed(rows: Sequence[Row]) -> list[Json]:
    """Rows and panels from top to bottom, as Grafana wants an open row: not nested."""
    placed: list[Json] = []
    y = 0
    for row in rows:
        placed.append(
            {
                "id": len(placed) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
                "panels": [],
            }
        )
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > _COLUMNS:
                x, y, height = 0, y + height, 0
            placed.append(panel.json(len(placed) + 1, x, y))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return placed
