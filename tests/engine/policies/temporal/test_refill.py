"""Refill: the cost of missing rows, and the cycle that costs least."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.policies.temporal.refill import idle_loss_s, switch_cost_s
from tests.engine.staircases import Stair, staircases, stairs

# A decode step takes one second for any number of rows, a step of a refill three.
FLAT = stairs((128, 1.0), (512, 3.0))


def test_a_step_loses_the_part_that_the_missing_rows_would_fill() -> None:
    assert idle_loss_s(FLAT, num_rows=60, num_more=40) == pytest.approx(0.4)
    assert idle_loss_s(FLAT, num_rows=60, num_more=0) == 0.0


def test_rows_that_only_make_the_step_longer_cause_no_loss() -> None:
    assert idle_loss_s(stairs((128, 1.0), (256, 1.5)), num_rows=128, num_more=8) == 0.0
    # At 192 rows in 1.5 s the rate is that of 128 in 1 s, at 240 it is higher by a quarter.
    assert idle_loss_s(stairs((128, 1.0), (256, 1.5)), 128, 64) == pytest.approx(0.0)
    assert idle_loss_s(stairs((128, 1.0), (256, 1.5)), 128, 112) == pytest.approx(0.2)


def test_a_part_of_a_row_counts_as_well() -> None:
    assert idle_loss_s(FLAT, num_rows=9, num_more=0.25) == pytest.approx(0.25 / 9.25)
    # Rounded to whole rows, the full step has 128 rows in one case and 129 in the other.
    assert idle_loss_s(FLAT, num_rows=100, num_more=28.4) > 0.2
    assert idle_loss_s(FLAT, num_rows=100, num_more=28.6) == 0.0


def test_a_switch_costs_the_bubble_between_short_steps_and_long_ones() -> None:
    assert switch_cost_s(FLAT, num_rows=100, size=512) == 2.0
    assert switch_cost_s(FLAT, num_rows=100, size=128) == 0.0


def test_a_switch_to_shorter_steps_costs_nothing() -> None:
    assert switch_cost_s(FLAT, num_rows=512, size=100) == 0.0


@settings(max_examples=40, deadline=None)
@given(steps=staircases(), num_rows=st.integers(1, 500), num_more=st.integers(0, 500))
def test_the_loss_is_the_additional_time_of_the_same_rows_over_full_steps(
    steps: list[Stair], num_rows: int, num_more: int
) -> None:
    cost = stairs(*steps)
    step_s, full = cost.linear_s(num_rows), num_rows + num_more
    in_full_steps = cost.linear_s(full) / full * num_rows
    expected = max(0.0, step_s - in_full_steps)
    assert idle_loss_s(cost, num_rows, num_more) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size_s", [1.5, 3.0, 9.0])
def test_the_cheapest_cycle_ends_when_idle_rows_have_cost_a_switch(size_s: float) -> None:
    # 100 rows, of which one ends with each step; a refill brings all of them back.
    cost = stairs((128, 1.0), (512, size_s))
    losses = [idle_loss_s(cost, 100 - missing, missing) for missing in range(100)]
    price = switch_cost_s(cost, 100, 512)
    cheapest = min(range(1, 100), key=lambda steps: (price + sum(losses[:steps])) / steps)
    by_rule = next(steps for steps in range(100) if sum(losses[:steps]) >= price)
    assert abs(by_rule - cheapest) <= 1
