"""The step size of a refill under targets, on a staircase that can be computed by hand."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from configs.schema.scheduler import SchedulerConfig
from engine.policies.temporal.targets import BESIDE_ROWS, MAX_WAIT, RESERVE, Targets, targets_of
from tests.engine.staircases import stairs

# Stairs end at 100, 200, ... tokens and take 10, 20, ... ms.
COST = stairs(*((100 * n, 0.01 * n) for n in range(1, 83)))
TARGETS = Targets(ttft_s=5.0, tpot_s=0.1, num_stages=2)


@dataclass
class First:
    """The first sequence in the queue."""

    arrived_at: float


@dataclass
class Waiting:
    """A queue whose first sequence arrived then."""

    arrived_at: float | None

    def first(self) -> First | None:
        return None if self.arrived_at is None else First(self.arrived_at)


@dataclass
class FakePool:
    """The parts of a pool that targets look at."""

    waiting_tokens: int
    waiting: Waiting = field(default_factory=lambda: Waiting(0.0))


def size(pool: Any, *, rows: int = 20, knee: int = 1000, now: float = 0.0) -> int:
    return TARGETS.step_size(COST, pool, rows, 0, knee, now)


def test_a_turn_stays_within_nine_tenths_of_the_target_per_token() -> None:
    # Two stages: a step takes at most 45 ms, which is the stair of 400 tokens.
    assert size(FakePool(5000)) == 400


def test_no_step_is_larger_than_what_waits() -> None:
    assert size(FakePool(150)) == 200
    assert size(FakePool(0, Waiting(None))) == 100


def test_no_step_is_beyond_the_knee() -> None:
    assert size(FakePool(5000), knee=300) == 300


def test_beside_many_rows_prompts_get_a_quarter_more() -> None:
    assert BESIDE_ROWS == 0.25
    assert size(FakePool(5000), rows=240, knee=200) == 300


def test_rows_that_take_longer_than_the_target_leave_the_rest_of_their_stair() -> None:
    assert size(FakePool(0, Waiting(None)), rows=480, knee=200) == 480
    assert size(FakePool(100), rows=480, knee=200) == 500


def test_a_prompt_that_would_be_late_gets_a_larger_step_up_to_the_knee() -> None:
    late = FakePool(5000, Waiting(0.0))
    deadline = (1 - RESERVE) * TARGETS.ttft_s
    # In 400 ms there are ten steps of 40 ms: 500 tokens in each.
    assert size(late, now=deadline - 0.4, knee=2000) == 600
    assert size(late, now=deadline - 0.4, knee=500) == 500
    assert size(late, now=deadline + 9.0, knee=2000) == 2000


def test_prompts_wait_for_a_part_of_their_target_only() -> None:
    assert TARGETS.max_wait_s == MAX_WAIT * 5.0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"ttft_slo": 1.0}, None),
        ({"tpot_slo": 0.1}, None),
        ({"ttft_slo": 1.0, "tpot_slo": 0.1}, Targets(1.0, 0.1, 3)),
    ],
)
def test_there_are_targets_if_both_are_set(
    settings: dict[str, float], expected: Targets | None
) -> None:
    assert targets_of(SchedulerConfig(**settings), 3) == expected
