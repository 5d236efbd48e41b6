"""The daemon's figures: the difference of two pages, without counters that were reset."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from bench.exchange import Address
from bench.results.daemon_figures import (
    COUNTERS,
    growth,
    parse_figures,
    read_figures,
    read_settled_figures,
)
from server.metrics import Metrics
from server.requests.monitoring.engine_metrics import EngineCollector
from tests.bench.world import Answer, metrics, serving
from wire.histogram import TOKEN_S, Histogram
from wire.messages import StageStats, Stats

UPTIME = "tdpipe_engine_uptime_seconds"
BEFORE, AFTER = (parse_figures(metrics(scrape).decode()) for scrape in (1, 3))


def test_counters_are_reported_by_what_they_grew() -> None:
    report = growth(BEFORE, AFTER)
    assert (report["phase_switches"], report["work_steals"], report["preemptions"]) == (4, 6, 0)


def test_the_bubble_ratio_is_the_part_of_the_time_with_work_that_a_stage_stood_idle() -> None:
    stages = growth(BEFORE, AFTER)["stages"]
    figures = {"busy_s": 0.5, "bubble_s": 1.5, "steps": 14, "bubble_ratio": 0.75}
    assert stages == [{"stage": 0, **figures}]


def test_a_run_without_work_has_no_bubble() -> None:
    stages = growth(BEFORE, BEFORE)["stages"]
    assert isinstance(stages, list)
    assert stages[0]["bubble_ratio"] == 0.0


def test_counters_that_began_anew_are_unknown_and_not_negative() -> None:
    report = growth(AFTER, BEFORE)
    assert report["phase_switches"] is None
    assert report["stages"] == [None]


def test_a_server_without_metrics_is_measured_without_them() -> None:
    with serving(lambda _: Answer([]), has_metrics=False) as server:
        assert asyncio.run(read_figures(Address.of(server.url))) is None
        assert asyncio.run(read_settled_figures(Address.of(server.url))) is None


def test_settled_figures_are_those_of_a_later_page() -> None:
    with serving(lambda _: Answer([])) as server:
        figures = asyncio.run(read_settled_figures(Address.of(server.url)))
    assert figures is not None
    assert figures[UPTIME, ""] == pytest.approx(20.0)


def test_every_figure_of_the_report_is_on_the_daemon_s_own_page() -> None:
    page = parse_figures(Metrics(EngineCollector(_client()), model_name="little").render().decode())
    kinds = ("busy_seconds", "bubble_seconds", "steps")
    stages = [f"tdpipe_stage_{kind}_total" for kind in kinds]
    assert {(UPTIME, ""), *((name, "") for name in COUNTERS)} <= set(page)
    assert {(name, str(stage)) for name in stages for stage in (0, 1)} <= set(page)
    assert None not in growth(page, page).values()


def _client() -> Any:
    """What the metrics page reads from an engine client with two stages."""
    stages = tuple(StageStats(stage, 1, 0.0, 0, 0, 0.0) for stage in (0, 1))
    return SimpleNamespace(
        num_generated=0,
        num_engines_lost=0,
        num_queued=0,
        num_queued_tokens=0,
        is_ready=True,
        ready=None,
        stats=Stats(ready=True, phase="decode", stages=stages),
        stats_at=0.0,
        inter_token_latency=Histogram(TOKEN_S),
    )
