"""The cost of a decision in operations: the benchmark measures seconds, the test counts."""

import sys
from types import FrameType
from typing import Any

import pytest

from benchmarks.virtual.decision_cost import Steady, time_decisions
from engine.policies.registry import POLICIES

NUM_LIVE, NUM_STEPS = 64, 150


class LineCounter:
    """Counts the lines that Python runs, loops and comprehensions included."""

    def __init__(self) -> None:
        self.lines = 0

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:  # noqa: ARG002
        self.lines += event in ("line", "call")
        return self._trace


def lines_per_decision(policy: str, num_waiting: int) -> float:
    steady = Steady(policy, NUM_LIVE, num_waiting)
    counter = LineCounter()
    for _ in range(NUM_STEPS):
        event, _ = steady.next_event()
        with counter:
            steady.decide(event)
    return counter.lines / NUM_STEPS


@pytest.mark.parametrize("policy", POLICIES)
def test_a_decision_does_not_grow_with_the_queue(policy: str) -> None:
    few, many = (lines_per_decision(policy, num_waiting) for num_waiting in (200, 4000))
    assert many < 1.1 * few + 10


@pytest.mark.parametrize("policy", POLICIES)
def test_the_scheduler_is_timed_at_the_rows_it_was_asked_for(policy: str) -> None:
    rows, seconds = time_decisions(policy, NUM_LIVE, 100, 50)
    assert rows == pytest.approx(NUM_LIVE / 8, rel=0.2)
    assert len(seconds) == 50
    assert min(seconds) > 0
