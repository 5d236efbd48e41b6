"""The router's stats log: what a line says, and when there is none."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from router.monitoring.stats_log import StatsLog


class Playing:
    """A stats log, and the fleets and the clock that the test plays."""

    def __init__(self) -> None:
        up = SimpleNamespace(is_up=True, num_open=2)
        down = SimpleNamespace(is_up=False, num_open=0)
        self.fleets = SimpleNamespace(num_requests=0, num_open=0, links={"a": up, "b": down})
        self.now = 0.0
        self._log = StatsLog(cast(Any, self.fleets), 10.0, lambda: self.now)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self._log.tick()


@pytest.fixture
def playing(caplog: pytest.LogCaptureFixture) -> Playing:
    caplog.set_level(logging.INFO)
    return Playing()


def test_a_line_is_about_an_interval(playing: Playing, caplog: pytest.LogCaptureFixture) -> None:
    playing.fleets.num_requests, playing.fleets.num_open = 50, 5
    playing.pass_time(9.0)
    assert caplog.messages == []
    playing.pass_time(1.0)
    assert caplog.messages == [
        "5.0 requests/s, 2 open and 3 waiting for an instance, 1 of 2 instances are up"
    ]


def test_after_the_last_request_there_is_one_more_line_and_then_none(
    playing: Playing, caplog: pytest.LogCaptureFixture
) -> None:
    for link in playing.fleets.links.values():
        link.num_open = 0
    playing.pass_time(10.0)
    assert caplog.messages == []
    playing.fleets.num_requests = 1
    for _ in range(5):
        playing.pass_time(10.0)
    assert len(caplog.messages) == 2
    assert caplog.messages[1].startswith("0.0 requests/s, 0 open")
