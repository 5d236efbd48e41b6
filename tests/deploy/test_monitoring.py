"""What deploy/ monitors, with real servers: two daemons, a router, Prometheus, Alertmanager.

Every panel of every dashboard has an answer, every rule works, and an alert arrives.
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import openai
import pytest

from deploy.grafana.source.__main__ import DASHBOARDS, path_of
from tests.deploy.servers import Alertmanager, Prometheus, Webhook, wait_for
from tests.deploy.test_dashboards import BY_UID, panels
from tests.deploy.test_prometheus import ALERTS, rules
from tests.deploy.tools import tool
from tests.deploy.traffic import MODEL, Traffic
from tests.end_to_end.daemon import PREDICTOR, Daemon
from tests.end_to_end.router import Router, instances_of

NUM_LINES = 3000
CPU = ("--device", "cpu", "--num-threads", "1")
# So few lines are open at a time that clients are answered, too, after the loss of a stage.
BATCHES = ("--batch-concurrency", "16")

pytestmark = [pytest.mark.deploy, pytest.mark.long, pytest.mark.timeout(600)]


class World(NamedTuple):
    """What is monitored and what monitors it; the second daemon may be stopped."""

    prometheus: Prometheus
    webhook: Webhook
    daemons: tuple[Daemon, Daemon]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Daemons and a router with traffic and batches; a stage was killed once."""
    prometheus_path, alertmanager_path = (
        tool(name, f"Debian's package {name}") for name in ("prometheus", "prometheus-alertmanager")
    )
    folder = tmp_path_factory.mktemp("monitored")
    daemons = (
        Daemon(folder / "one", *CPU, *BATCHES, "--predictor", PREDICTOR),
        Daemon(folder / "two", *CPU, "-pp", "1"),
    )
    with ExitStack() as stack:
        for each in daemons:
            stack.enter_context(each)
        urls = [each.url for each in daemons]
        router = stack.enter_context(
            Router(folder, *instances_of(*urls), *BATCHES, num_instances=2)
        )
        webhook = stack.enter_context(Webhook())
        alertmanager = stack.enter_context(
            Alertmanager(alertmanager_path, folder / "alertmanager", webhook.url)
        )
        targets = {
            "daemons": [address_of(url) for url in urls],
            "routers": [address_of(router.url)],
            "alertmanagers": [f"127.0.0.1:{alertmanager.port}"],
        }
        prometheus = stack.enter_context(
            Prometheus(prometheus_path, folder / "prometheus", **targets)
        )
        stack.enter_context(Traffic([*urls, router.url, router.url]))
        for url in (urls[0], router.url):
            begin_batch(url)
        wait_for(lambda: prometheus.ask("rate(tdpipe_generated_tokens_total[5s]) > 0"), router.log)
        daemons[0].descendants()["stage"][0].kill()
        yield World(prometheus, webhook, daemons)


def address_of(url: str) -> str:
    """Host and port."""
    return url.removeprefix("http://")


def begin_batch(url: str) -> None:
    """Begin a batch that is long enough for the tests."""
    body = {"model": MODEL, "prompt": "Count to nine in words.\n", "max_tokens": 40}
    lines = (
        {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body}
        for i in range(NUM_LINES)
    )
    content = "\n".join(json.dumps(line) for line in lines).encode()
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )


def as_grafana_asks(expr: str) -> str:
    """A panel's query with all values of each variable, and windows of ten scrapes."""
    return re.sub(r"\$(?!__)\w+", ".*", expr).replace("$__rate_interval", "10s")


def answers(prometheus: Prometheus, expr: str) -> list[dict[str, str]]:
    """The labels of the series that a query has a number for now."""
    return [labels for labels, value in prometheus.ask(expr) if math.isfinite(value)]


@pytest.mark.parametrize("uid", BY_UID)
def test_every_query_of_a_panel_has_an_answer_with_the_labels_of_its_legend(
    world: World, uid: str
) -> None:
    missing = {
        (panel["title"], as_grafana_asks(target["expr"]), target["legendFormat"])
        for panel in panels(BY_UID[uid])
        for target in panel["targets"]
    }

    def answered() -> bool:
        for each in list(missing):
            _, expr, legend = each
            found = {label for labels in answers(world.prometheus, expr) for label in labels}
            is_answered = answers(world.prometheus, expr)
            if is_answered and set(re.findall(r"{{(\w+)}}", legend)) <= found:
                missing.discard(each)
        return not missing

    wait_for(answered, lambda: f"no answer to {missing}")


def test_the_variables_have_values(world: World) -> None:
    for dashboard in DASHBOARDS:
        for variable in json.loads(path_of(dashboard).read_text())["templating"]["list"]:
            if variable["type"] == "query":
                query = as_grafana_asks(variable["query"]["query"])
                found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
                assert found is not None
                assert world.prometheus.label_values(*found.groups()), query


@pytest.mark.parametrize("name", ["recording.yml", "vllm.yml"])
def test_every_recorded_figure_has_a_value(world: World, name: str) -> None:
    missing = {rule["record"] for rule in rules(name)}

    def recorded() -> bool:
        for each in list(missing):
            if answers(world.prometheus, each):
                missing.discard(each)
        return not missing

    wait_for(recorded, lambda: f"no value of {missing}")


def test_every_rule_is_evaluated_without_an_error(world: World) -> None:
    groups = world.prometheus.get("/api/v1/rules")["data"]["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in found if rule["type"] == "alerting"} == set(ALERTS)
    assert [rule for rule in found if rule["health"] != "ok"] == []


def test_no_sample_is_refused_by_prometheus(world: World) -> None:
    targets = world.prometheus.get("/api/v1/targets")["data"]["activeTargets"]
    assert [target["lastError"] for target in targets] == [""] * 3
    assert "out of order" not in world.prometheus.log()
    assert "uplicate" not in world.prometheus.log()


def test_the_alert_of_the_restarted_stages_reaches_the_receiver_of_tickets(world: World) -> None:
    wait_for(
        lambda: ("/tickets", "TdpipeStagesRestarted") in received(world),
        lambda: str(received(world)),
    )


def test_the_alert_of_a_stopped_daemon_reaches_the_receiver_of_pages(world: World) -> None:
    stopped = world.daemons[1]
    url = stopped.url
    stopped.process.terminate()
    assert stopped.wait_end() == 0
    wait_for(lambda: ("/pages", "TdpipeDown") in received(world), lambda: str(received(world)))
    (alert, *_) = (a for _, a in world.webhook.alerts if a["labels"]["alertname"] == "TdpipeDown")
    assert alert["labels"]["severity"] == "critical"
    assert alert["labels"]["instance"] == address_of(url)
    assert alert["annotations"]["summary"] == f"{address_of(url)} is down"
    assert alert["annotations"]["runbook_url"] == "docs/runbook.md#tdpipedown"


def received(world: World) -> set[tuple[str, str]]:
    """The alerts that were sent, by receiver and name."""
    return {(path, alert["labels"]["alertname"]) for path, alert in world.webhook.alerts}
