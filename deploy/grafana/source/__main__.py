"""Write the dashboards' JSON files: `python -m deploy.grafana.source` (`make dashboards`)."""

import json
from pathlib import Path

from deploy.grafana.source import batches_and_router, overview, pipeline
from deploy.grafana.source.dashboard import Dashboard

FOLDER = Path(__file__).resolve().parents[1] / "dashboards"
DASHBOARDS = (overview.DASHBOARD, pipeline.DASHBOARD, batches_and_router.DASHBOARD)


def path_of(dashboard: Dashboard) -> Path:
    """The file of a dashboard."""
    return FOLDER / f"{dashboard.uid}.json"


def text_of(dashboard: Dashboard) -> str:
    """What its file contains."""
    return json.dumps(dashboard.json(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in DASHBOARDS:
        path_of(each).write_text(text_of(each))
