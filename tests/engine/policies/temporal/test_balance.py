"""Balance: an equal share of the rows, moved to the end of a stair."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.costs.cost_model import TABLE_TOKENS
from engine.policies.temporal.balance import most_rows
from tests.engine.staircases import Stair, staircases, stairs

COST = stairs((128, 1.0), (256, 1.51), (TABLE_TOKENS, 9.0))


def most(num_live: int, num_stages: int = 4) -> int:
    """With ten tokens of KV for each sequence."""
    return most_rows(COST, num_live, num_stages)


def test_an_equal_share_within_a_stair_may_be_filled_to_its_end() -> None:
    assert most(4 * 100) == 128
    assert most(4 * 250) == 256


def test_a_share_just_beyond_a_stair_is_reduced_to_its_end() -> None:
    # As on the paper's 13B profile: 132 rows are worse than 128 and 4 withheld.
    assert most(4 * 132) == 128


@pytest.mark.parametrize(("share", "rows"), [(193, 128), (194, 256)])
def test_the_higher_number_of_rows_per_second_decides(share: int, rows: int) -> None:
    # 128 rows in 1 s are as good as 193.3 in 1.51 s.
    assert most(4 * share) == rows


def test_the_share_is_rounded_up_to_rows() -> None:
    assert most(4 * 193) == 128
    assert most(4 * 193 + 1) == 256


def test_on_one_stage_all_live_sequences_are_the_share() -> None:
    assert most(100, num_stages=1) == 128


def test_without_live_sequences_there_are_no_rows() -> None:
    assert most(0) == 0


@settings(max_examples=40, deadline=None)
@given(steps=staircases(), num_live=st.integers(1, 4000), num_stages=st.integers(1, 8))
def test_no_share_runs_slower_than_an_equal_one(
    steps: list[Stair], num_live: int, num_stages: int
) -> None:
    cost, share = stairs(*steps), -(-num_live // num_stages)
    rows = most_rows(cost, num_live, num_stages)
    assert rows in [end for end, _ in steps]
    taken = min(rows, share)
    assert taken / cost.linear_s(taken) >= share / cost.linear_s(share) * (1 - 1e-9)
    # Fewer than an equal share only to the end of the stair before it.
    assert rows >= max([end for end, _ in steps if end < share], default=0)
