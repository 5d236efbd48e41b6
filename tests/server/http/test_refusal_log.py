"""The refusal log: a flood of refusals is a line in an interval."""

import logging
from collections.abc import Callable

import pytest

from server.http.refusal_log import INTERVAL_S, MAX_REASONS, RefusalLog


class Clock:
    """An event loop's timers, and the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._due.append((self.now + delay_s, callback))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        due = [callback for at, callback in self._due if at <= self.now]
        self._due = [each for each in self._due if each[0] > self.now]
        for callback in due:
            callback()

    @property
    def has_timers(self) -> bool:
        return bool(self._due)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock, caplog: pytest.LogCaptureFixture) -> RefusalLog:
    caplog.set_level(logging.INFO)
    return RefusalLog(clock.call_later, lambda: clock.now)


def test_the_first_refusal_is_logged_by_itself_and_the_others_are_summed_up(
    log: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    alone = [log.add("queue_full") for _ in range(1000)]
    alone += [log.add("body_memory") for _ in range(20)]
    assert alone == [True] + 1019 * [False]
    assert caplog.messages == []
    clock.pass_time(INTERVAL_S)
    assert caplog.messages == ["refused 1019 more requests in 10 s: queue_full 999, body_memory 20"]


def test_in_a_flood_there_is_a_line_in_each_interval_and_then_none(
    log: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log.add("queue_full")
    for _ in range(3):
        log.add("queue_full")
        clock.pass_time(INTERVAL_S)
    assert len(caplog.messages) == 3
    clock.pass_time(INTERVAL_S)
    assert len(caplog.messages) == 3
    assert not clock.has_timers


def test_after_a_quiet_interval_a_refusal_is_logged_by_itself_again(
    log: RefusalLog, clock: Clock
) -> None:
    assert log.add("queue_full")
    clock.pass_time(INTERVAL_S)
    assert log.add("queue_full")


def test_the_number_of_reasons_in_a_line_is_limited(
    log: RefusalLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log.add("first")
    for number in range(10 * MAX_REASONS):
        log.add(f"reason-{number}")
    clock.pass_time(INTERVAL_S)
    assert caplog.messages[0].count("reason-") == MAX_REASONS
    assert f"other {9 * MAX_REASONS}" in caplog.messages[0]
