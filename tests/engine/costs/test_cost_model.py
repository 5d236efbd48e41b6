"""The cost model: measured points, interpolation, and the ends of stairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.costs.cost_model import TABLE_TOKENS, CostModel, StepSize
from tests.engine.staircases import Stair, staircases, stairs
from wire.messages import StageCosts

Measured = st.dictionaries(st.integers(1, 2 * TABLE_TOKENS), st.floats(0.001, 10.0), min_size=1)
few = settings(max_examples=30, deadline=None)


def model(measured: dict[int, float], kv_s_per_token: float = 0.0) -> CostModel:
    """A cost model of {tokens: seconds}."""
    return CostModel(sorted(measured), [measured[n] for n in sorted(measured)], kv_s_per_token)


def test_a_step_between_two_measurements_lies_on_the_line_between_them() -> None:
    cost = model({1: 1.0, 10: 2.0, 100: 11.0})
    assert [cost.linear_s(n) for n in (1, 10, 55, 100)] == [1.0, 2.0, 6.5, 11.0]


def test_no_step_costs_less_than_the_smallest_measured_one() -> None:
    cost = model({16: 1.0, 32: 2.0})
    assert [cost.linear_s(n) for n in (1, 15, 16)] == [1.0, 1.0, 1.0]


def test_feeding_nothing_costs_nothing() -> None:
    assert model({16: 1.0, 32: 2.0}).linear_s(0) == 0.0


def test_no_step_takes_no_time_whatever_was_fitted() -> None:
    cost = model({1: 0.0, 8: 0.0, 40: 1.0})
    assert all(0.0 < cost.linear_s(n) < 1e-5 for n in (1, 5, 8))
    assert cost.scaled(np.array([1.0, 40.0]), np.array([0.0, 1.0])).linear_s(1) > 0.0
    assert CostModel.slowest([cost, cost]).decode_s(1) > 0.0


def test_beyond_the_last_measurement_a_token_costs_its_average_there() -> None:
    assert model({10: 4.0, 100: 10.0}).linear_s(250) == pytest.approx(25.0)


def test_a_single_measurement_holds_for_every_size() -> None:
    assert model({1: 0.5}).linear_s(5000) == 0.5
    assert model({1: 0.5}).linear_s(TABLE_TOKENS + 5000) == 0.5


@few
@given(measured=Measured, num_tokens=st.integers(1, 2 * TABLE_TOKENS))
def test_the_table_and_the_computed_sizes_beyond_it_are_one_line(
    measured: dict[int, float], num_tokens: int
) -> None:
    points = sorted(measured)
    expected = np.interp(num_tokens, points, [measured[n] for n in points])
    if len(points) > 1:
        expected *= max(1.0, num_tokens / points[-1])
    assert model(measured).linear_s(num_tokens) == pytest.approx(expected)


@few
@given(measured=Measured, sizes=st.lists(st.integers(0, TABLE_TOKENS)))
def test_many_steps_cost_the_same_as_each_by_itself(
    measured: dict[int, float], sizes: list[int]
) -> None:
    cost = model(measured)
    many = cost.linear_many(np.array(sizes, dtype=np.int64))
    assert many.tolist() == [cost.linear_s(size) for size in sizes]


def test_a_step_takes_longer_by_the_resident_kv_that_it_reads() -> None:
    cost = model({1: 1.0, 10: 2.0}, kv_s_per_token=0.25)
    assert cost.step_s(StepSize(10)) == 2.0
    assert cost.step_s(StepSize(10, kv_tokens=8)) == 4.0


@few
@given(steps=staircases(), num_tokens=st.integers(1, TABLE_TOKENS))
def test_the_edge_is_the_end_of_the_stair_of_a_step(steps: list[Stair], num_tokens: int) -> None:
    cost = stairs(*steps)
    assert cost.edge(num_tokens) == next(end for end, _ in steps if num_tokens <= end)
    assert cost.edges == [end for end, _ in steps]


def test_the_edge_is_where_the_seconds_have_risen_by_two_percent() -> None:
    cost = model({1: 1.0, 2: 1.015, 3: 1.03, 100: 50.0})
    assert (cost.edge(1), cost.edge(2), cost.edge(3)) == (2, 3, 3)


def test_a_cheap_size_after_an_expensive_one_is_on_no_earlier_stair() -> None:
    cost = model({1: 1.0, 2: 1.0, 3: 2.0, 4: 1.0, 5: 9.0})
    assert cost.edge(1) == 2


def test_the_edge_of_a_dip_is_the_dip_itself() -> None:
    cost = model({1: 2.0, 2: 1.0, 3: 1.0, 4: 9.0})
    assert [cost.edge(n) for n in (1, 2, 3)] == [3, 2, 3]
    assert cost.edges[:2] == [3, 4]


def test_a_step_beyond_the_table_ends_where_it_ends() -> None:
    cost = model({1: 1.0})
    assert cost.edges == [TABLE_TOKENS]
    assert cost.edge(TABLE_TOKENS + 7) == TABLE_TOKENS + 7


def of(*stages: StageCosts) -> CostModel:
    """The slowest of these stages."""
    return CostModel.slowest([CostModel.of(costs) for costs in stages])


def test_a_step_costs_the_sum_over_its_tokens_rows_kv_and_pairs() -> None:
    cost = CostModel.of(StageCosts((1, 100), (1.0, 1.0), 0.5, row_s=0.25, pair_s=0.125))
    assert cost.step_s(StepSize(8, num_rows=2, kv_tokens=4, num_pairs=16)) == 1 + 2 + 0.5 + 2
    assert cost.decode_s(8) == 1 + 2


def test_the_slowest_stage_at_each_size_determines_the_model() -> None:
    cost = of(
        StageCosts((1, 100), (1.0, 3.0), 0.1, 0.5, 0.1),
        StageCosts((1, 50, 100), (2.0, 2.0, 2.5), 0.3, 0.1, 0.2),
    )
    # At 50 tokens the first takes 1 + 2 * 49 / 99 = 1.99 s.
    assert [cost.linear_s(n) for n in (1, 50, 100)] == [2.0, 2.0, 3.0]
    assert (cost.kv_s_per_token, cost.row_s, cost.pair_s) == (0.3, 0.5, 0.2)


@few
@given(stages=st.lists(Measured, min_size=1, max_size=3))
def test_no_stage_is_slower_than_the_model_at_measured_sizes(
    stages: list[dict[int, float]],
) -> None:
    cost = of(*(StageCosts(tuple(sorted(m)), tuple(m[n] for n in sorted(m))) for m in stages))
    models = [model(measured) for measured in stages]
    for size in {n for measured in stages for n in measured}:
        slowest = max(one.linear_s(size) for one in models)
        assert cost.linear_s(size) == pytest.approx(slowest)


def test_without_any_measurement_a_step_costs_one_second() -> None:
    cost = of()
    assert (cost.linear_s(1), cost.linear_s(500), cost.step_s(StepSize(1, 5))) == (1.0, 1.0, 1.0)


def test_a_scaled_model_costs_factor_times_more_at_each_size() -> None:
    cost = CostModel([1, 16, 256], [1.0, 2.0, 4.0], 0.5, 0.25, 0.125)
    scaled = cost.scaled(np.array([1.0, 16.0, 256.0]), np.array([1.0, 2.0, 3.0]))
    assert [scaled.linear_s(n) for n in (1, 16, 256)] == pytest.approx([1.0, 4.0, 12.0])
    assert (scaled.kv_s_per_token, scaled.row_s, scaled.pair_s) == (1.0, 0.5, 0.25)
    assert [cost.linear_s(n) for n in (1, 16, 256)] == [1.0, 2.0, 4.0]


def test_factors_apply_between_the_measurements_too() -> None:
    scaled = CostModel([1, 256], [1.0, 1.0]).scaled(
        np.array([1.0, 16.0, 256.0]), np.array([1.0, 3.0, 1.0])
    )
    assert scaled.linear_s(16) == pytest.approx(3.0)


def test_holders_of_a_model_see_its_new_figures() -> None:
    cost, other = stairs((128, 1.0), (TABLE_TOKENS, 2.0)), stairs((64, 1.0), (TABLE_TOKENS, 3.0))
    assert cost.edges == [128, TABLE_TOKENS]
    cost.become(other)
    assert cost.edges == [64, TABLE_TOKENS]
    assert cost.linear_s(65) == 3.0
