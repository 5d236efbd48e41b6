"""The dashboards: generated from their descriptions, complete, and about metrics that exist."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import yaml

from deploy.grafana.source.__main__ import DASHBOARDS, FOLDER, path_of, text_of
from deploy.grafana.source.dashboard import Dashboard
from tests.deploy.promql import documented, metrics_read
from tests.deploy.tools import ROOT

BY_UID = {dashboard.uid: dashboard for dashboard in DASHBOARDS}
NUM_COLUMNS = 24


def panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    """The panels of a dashboard, as Grafana reads them, without its rows."""
    shown = json.loads(path_of(dashboard).read_text())["panels"]
    return (panel for panel in shown if panel["type"] != "row")


@pytest.fixture(params=BY_UID)
def dashboard(request: pytest.FixtureRequest) -> Dashboard:
    return BY_UID[request.param]


def test_the_committed_file_is_what_the_description_generates(dashboard: Dashboard) -> None:
    assert path_of(dashboard).read_text() == text_of(dashboard), "run `make dashboards`"


def test_there_is_no_other_file() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{uid}.json" for uid in BY_UID}


def test_every_panel_has_a_unit_and_a_description(dashboard: Dashboard) -> None:
    for panel in panels(dashboard):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]


def test_panels_have_ids_and_titles_of_their_own(dashboard: Dashboard) -> None:
    shown = list(panels(dashboard))
    for key in ("id", "title"):
        assert len({panel[key] for panel in shown}) == len(shown)


def test_panels_lie_within_the_columns_and_not_upon_each_other(dashboard: Dashboard) -> None:
    places = [panel["gridPos"] for panel in json.loads(path_of(dashboard).read_text())["panels"]]
    assert all(at["x"] >= 0 and at["x"] + at["w"] <= NUM_COLUMNS for at in places)
    for one, other in combinations(places, 2):
        apart = (
            one[axis] + one[size] <= other[axis] or other[axis] + other[size] <= one[axis]
            for axis, size in (("x", "w"), ("y", "h"))
        )
        assert any(apart), (one, other)


def test_queries_read_only_metrics_that_the_docs_list(dashboard: Dashboard) -> None:
    for panel in panels(dashboard):
        for target in panel["targets"]:
            read = metrics_read(target["expr"])
            assert read <= documented().keys(), panel["title"]
            assert read or "ALERTS" in target["expr"], panel["title"]


def test_every_query_obeys_the_variables(dashboard: Dashboard) -> None:
    names = {variable.name for variable in dashboard.variables}
    for panel in panels(dashboard):
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= names, panel["title"]
            assert used & {"instance", "router"} or "ALERTS" in target["expr"], panel["title"]


def test_all_metrics_of_the_daemon_and_of_the_router_are_shown() -> None:
    shown = {
        name
        for each in DASHBOARDS
        for panel in panels(each)
        for target in panel["targets"]
        for name in metrics_read(target["expr"])
    }
    # They are for a search, and add nothing to a panel that there is.
    assert documented().keys() - shown == {
        "tdpipe_ignored_fields_total",
        "tdpipe_queued_prompt_tokens",
        "tdpipe_last_stage_loss_timestamp_seconds",
        "process_virtual_memory_bytes",
        "process_start_time_seconds",
    }


def test_grafana_finds_the_data_source_and_the_files() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    scraping = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == scraping["scrape_interval"]
    (provider,) = yaml.safe_load((folder / "dashboards/tdpipe.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
