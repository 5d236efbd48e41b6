"""Top-up: the knee, against a reference that tries every size."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.costs.cost_model import TABLE_TOKENS, CostModel
from engine.policies.temporal.topup import knee, paced
from tests.engine.staircases import Stair, staircases, stairs

# Tokens cost 10, 6, 5.5 and 5.4 ms at the ends of the stairs.
COST = stairs((100, 1.0), (200, 1.2), (400, 2.2), (1000, 5.4), (TABLE_TOKENS, 99.0))
FEW = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize(
    ("tolerance", "size"), [(0.0, 1000), (0.01, 1000), (0.08, 400), (0.12, 200), (0.9, 100)]
)
def test_the_knee_is_the_smallest_stair_about_as_cheap_as_the_cheapest(
    tolerance: float, size: int
) -> None:
    assert knee(COST, longest=2048, tolerance=tolerance) == size


def test_a_step_is_never_longer_than_allowed() -> None:
    # Up to 300 tokens the end of the stair at 200 is the cheapest, 6 ms; a step of 300 has 7.3 ms.
    assert knee(COST, longest=300, tolerance=0.0) == 200
    assert knee(COST, longest=50, tolerance=0.0) == 50


def test_the_longest_allowed_step_need_not_be_the_end_of_a_stair() -> None:
    assert knee(CostModel([1, 1000], [1.0, 1.0]), longest=700, tolerance=0.0) == 700


def test_if_every_token_costs_the_same_the_knee_is_the_first_stair() -> None:
    proportional = CostModel([1, 100], [0.01, 1.0])
    assert knee(proportional, longest=2048, tolerance=0.01) == proportional.edge(1)


@FEW
@given(steps=staircases(), longest=st.integers(1, 3000))
def test_without_tolerance_no_size_is_cheaper(steps: list[Stair], longest: int) -> None:
    cost = stairs(*steps)
    size = knee(cost, longest, 0.0)
    assert 1 <= size <= longest
    prices = [cost.linear_s(n) / n for n in range(1, longest + 1)]
    assert prices[size - 1] == min(prices)


@FEW
@given(steps=staircases(), longest=st.integers(1, 3000), tolerance=st.floats(0, 2))
def test_with_tolerance_no_smaller_stair_is_cheap_enough(
    steps: list[Stair], longest: int, tolerance: float
) -> None:
    cost = stairs(*steps)
    size = knee(cost, longest, tolerance)
    limit = min(cost.linear_s(n) / n for n in range(1, longest + 1)) * (1 + tolerance)
    assert cost.linear_s(size) / size <= limit
    smaller = [end for end, _ in steps if end < size]
    assert all(cost.linear_s(end) / end > limit for end in smaller)
    assert size == longest or size in [end for end, _ in steps]


@FEW
@given(
    steps=staircases(),
    num_rows=st.integers(1, 300),
    tokens=st.integers(0, 5000),
    n=st.integers(1, 64),
)
def test_prompts_are_fed_in_so_many_steps_and_no_step_could_be_filled_for_free(
    steps: list[Stair], num_rows: int, tokens: int, n: int
) -> None:
    cost = stairs(*steps)
    size = paced(cost, num_rows, tokens, n)
    assert (size - num_rows) * n >= tokens
    smallest = num_rows + -(-tokens // n)
    assert cost.linear_s(size) == cost.linear_s(smallest)
    assert size in [end for end, _ in steps] or size == smallest
