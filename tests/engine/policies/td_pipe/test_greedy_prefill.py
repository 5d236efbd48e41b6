"""Greedy prefill: simulated use at the future points of the paper, and the peak that must fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.policies.td_pipe.greedy_prefill import FUTURE_POINTS, FutureUse
from engine.state.expectation import Expectation
from engine.state.sequence import Sequence
from wire.messages import Submit

Admitted = st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 5000)), max_size=12)


class Plan:
    """Simulated use, with lengths and predicted remaining tokens instead of sequences."""

    def __init__(self, capacity_blocks: float, block_size: int) -> None:
        self._use = FutureUse(capacity_blocks, block_size)

    def admits(self, length: int, remaining: int) -> bool:
        return self._use.admits(sequence(length, remaining))

    def add(self, length: int, remaining: int) -> None:
        self._use.add(sequence(length, remaining))


def sequence(length: int, remaining: int) -> Sequence:
    """A prompt of `length` tokens that is predicted to generate `remaining`."""
    expected = Expectation(remaining, max(1.0, remaining), 0.5, "point")
    return Sequence(Submit(0, bytes(4 * length), 1 << 20), 0.0, expected)


def use_at(point: int, admitted: list[tuple[int, int]], block_size: int) -> int:
    """Section 3.3 literally: blocks held `point` decode steps from now."""
    held = 0
    for length, remaining in admitted:
        # A sequence that is nearly complete still holds its blocks at the first point.
        if point <= max(remaining, FUTURE_POINTS[0]):
            held += len(range(0, length + point, block_size))
    return held


def test_the_future_points_are_the_paper_s() -> None:
    assert FUTURE_POINTS == (5, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def test_a_sequence_holds_its_length_and_growth_at_the_last_point_it_reaches() -> None:
    # 10 tokens now, 20 more to come: 15 at point 5, 18 at 8, 26 at 16, none at 32.
    assert Plan(26, 1).admits(10, 20)
    assert not Plan(25, 1).admits(10, 20)


def test_partly_filled_blocks_are_counted_in_full() -> None:
    # 26 tokens at the peak: 7 blocks of 4, the last one half empty.
    assert Plan(7, 4).admits(10, 20)
    assert not Plan(6, 4).admits(10, 20)


def test_the_capacity_may_include_a_part_of_a_block() -> None:
    assert Plan(7.9, 4).admits(10, 20)
    assert not Plan(6.9, 4).admits(10, 20)


def test_a_sequence_that_ends_before_the_next_point_no_longer_counts_there() -> None:
    plan = Plan(100, 1)
    plan.add(40, 5)  # 45 at point 5, nothing after
    assert plan.admits(50, 5)  # 45 + 55
    assert not plan.admits(51, 5)
    assert plan.admits(50, 32)  # 55 and 82: they never overlap beyond point 5
    assert not plan.admits(50, 64)  # 114 at point 64, although only 100 at point 5


def test_the_peak_is_that_of_the_sum_and_not_the_sum_of_the_peaks() -> None:
    plan = Plan(138, 1)
    plan.add(100, 5)  # 105 at point 5, and none later
    assert plan.admits(10, 128)  # 15 at point 5, 138 at point 128
    assert not plan.admits(11, 128)


def test_a_nearly_complete_sequence_still_holds_its_blocks() -> None:
    plan = Plan(100, 1)
    plan.add(90, 0)  # 95 at point 5
    assert plan.admits(0, 0)
    assert not plan.admits(1, 0)


def test_admits_does_not_add_the_sequence() -> None:
    plan = Plan(10, 1)
    for _ in range(3):
        assert plan.admits(5, 0)
    plan.add(5, 0)
    assert not plan.admits(5, 0)


@given(
    admitted=Admitted,
    newcomer=st.tuples(st.integers(1, 3000), st.integers(0, 5000)),
    block_size=st.integers(1, 64),
    capacity=st.integers(0, 3000),
)
def test_the_peak_over_all_points_decides(
    admitted: list[tuple[int, int]], newcomer: tuple[int, int], block_size: int, capacity: int
) -> None:
    plan = Plan(capacity, block_size)
    for length, remaining in admitted:
        plan.add(length, remaining)
    peak = max(use_at(point, [*admitted, newcomer], block_size) for point in FUTURE_POINTS)
    assert plan.admits(*newcomer) == (peak <= capacity)


@pytest.mark.parametrize("remaining", [0, 5, 6, 100, 4096, 10_000])
def test_longer_sequences_are_never_easier_to_admit(remaining: int) -> None:
    for length in range(0, 300, 7):
        plan = Plan(50, 16)
        plan.add(200, 64)
        if not plan.admits(length, remaining):
            assert not plan.admits(length + 1, remaining)
            assert not plan.admits(length, remaining + 1)
