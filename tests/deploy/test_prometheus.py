"""deploy/prometheus and deploy/alertmanager: valid, tested, documented."""

import re
from typing import Any

import pytest
import yaml

from tests.deploy.promql import documented, metrics_read
from tests.deploy.tools import ROOT, run, tool

FOLDER = ROOT / "deploy" / "prometheus"
ORIGINS = {"promtool": "prometheus", "amtool": "prometheus-alertmanager"}
UNIT_TESTS = ROOT / "tests" / "deploy" / "prometheus"


def rules(name: str) -> list[dict[str, Any]]:
    """The rules of a file."""
    groups = yaml.safe_load((FOLDER / "rules" / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


UNIT_TESTED = yaml.safe_load((UNIT_TESTS / "alerts.yml").read_text())["tests"]
ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_tells_how_urgent_it_is_what_it_is_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{alert.lower()}"


def test_the_runbook_has_a_whole_section_for_each_alert_and_no_other() -> None:
    sections = re.split(r"^### ", (ROOT / "docs/runbook.md").read_text(), flags=re.MULTILINE)[1:]
    assert [section.split("\n")[0] for section in sections] == list(ALERTS), "in the same order"
    for section in sections:
        assert re.findall(r"^\*\*(.+?)\.\*\*", section, re.MULTILINE) == [
            "Meaning",
            "Look at",
            "Do",
        ], section


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_unit_test_in_which_it_fires_and_one_in_which_it_does_not(
    alert: str,
) -> None:
    expected = [
        bool(check.get("exp_samples"))
        for test in UNIT_TESTED
        for check in test["promql_expr_test"]
        if f'alertname="{alert}"' in check["expr"]
    ]
    assert {True, False} <= set(expected)


@pytest.mark.parametrize("name", ["recording.yml", "alerts.yml", "vllm.yml"])
def test_rules_read_only_metrics_that_the_docs_list(name: str) -> None:
    for rule in rules(name):
        assert metrics_read(rule["expr"]) <= documented().keys(), rule


def test_alerts_read_only_figures_that_are_recorded() -> None:
    recorded = {rule["record"] for rule in rules("recording.yml")}
    for rule in ALERTS.values():
        assert set(re.findall(r"instance\w*:[\w:]+", rule["expr"])) <= recorded


def test_the_docs_name_what_is_recorded_under_vllms_names() -> None:
    page = (ROOT / "docs/monitoring.md").read_text()
    for rule in rules("vllm.yml"):
        name = re.sub(r"^vllm:(.+?)(?:_bucket|_sum|_count)?$", r"\1", rule["record"])
        assert f"`{name}`" in page


def test_the_scrape_jobs_have_names_that_the_alerts_find() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert all("tdpipe" in job["job_name"] for job in config["scrape_configs"])


@pytest.mark.deploy
def test_promtool_accepts_configuration_targets_and_rules() -> None:
    said = passes("promtool", "check", "config", str(FOLDER / "prometheus.yml"))
    assert f"{len(ALERTS)} rules found" in said


@pytest.mark.deploy
@pytest.mark.parametrize("name", ["alerts.yml", "recording.yml"])
def test_the_rules_pass_their_unit_tests(name: str) -> None:
    passes("promtool", "test", "rules", str(UNIT_TESTS / name))


@pytest.mark.deploy
def test_amtool_accepts_the_alertmanagers_configuration() -> None:
    passes("amtool", "check-config", str(ROOT / "deploy/alertmanager/alertmanager.yml"))


def passes(name: str, *arguments: str) -> str:
    """What a program prints; an AssertionError with it if it finds an error."""
    checked = run(tool(name, f"Debian's package {ORIGINS[name]}"), *arguments)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    return checked.stdout
