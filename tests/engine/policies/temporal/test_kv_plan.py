"""The KV plan, against a reference that goes through sequences and points one by one."""

from itertools import takewhile
from math import ceil, inf

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.policies.td_pipe.greedy_prefill import FUTURE_POINTS, FutureUse
from engine.policies.temporal.kv_plan import POINTS, KvPlan
from engine.state.length_errors import Floats, LengthErrors, bins_of
from engine.state.pool import Pool
from engine.state.sequence import Sequence
from tests.engine.pools import BLOCK_SIZE, learnt, make_pool, make_sequence, make_sequences

Row = tuple[int, int, int, int]
"""Tokens of the prompt, generated so far, predicted, and the maximum to be generated."""
ROW = st.tuples(
    st.integers(1, 60), st.integers(0, 8), st.integers(1, 400), st.sampled_from([9, 16, 64, 900])
)
ROWS = st.lists(ROW, max_size=5)
ENDED = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), max_size=8)


def sequences(rows: list[Row]) -> list[Sequence]:
    """A waiting sequence for each row; those with generated tokens were preempted."""
    waiting = []
    for i, (prompt, generated, predicted, most) in enumerate(rows):
        sequence = make_sequence(100 + i, prompt, predicted_len=predicted, max_tokens=most)
        sequence.token_ids.extend([1] * generated)
        waiting.append(sequence)
    return waiting


def live_pool(rows: list[Row], spare_blocks: int, errors: LengthErrors) -> Pool:
    """A live sequence for each row."""
    ready = [
        (make_sequence(i, prompt, predicted_len=predicted, max_tokens=most), generated + 1)
        for i, (prompt, generated, predicted, most) in enumerate(rows)
    ]
    return make_sequences(ready, spare_blocks, errors)


def reached(survival: Floats, sequence: Sequence, ahead: float) -> float:
    """The part of similar sequences that generate `ahead` more tokens."""
    output_len, expected = float(sequence.num_generated) + ahead, sequence.expected
    (index,) = bins_of(*(np.array([x]) for x in (output_len, expected.median, expected.spread)))
    return float(survival[index])


def mean_use(survival: Floats, rows: list[Sequence], point: float) -> float:
    """Mean number of blocks in use `point` steps from now."""
    mean = 0.0
    for sequence in rows:
        length = len(sequence.token_ids) + point
        chance = reached(survival, sequence, point) / max(reached(survival, sequence, 0), 1e-12)
        if length > sequence.longest_len:
            chance = 0.0
        if point == POINTS[0]:
            chance = 1.0
        mean += chance * ceil(length / BLOCK_SIZE)
    return mean


@settings(deadline=None)
@given(data=st.data(), live=ROWS, waiting=st.lists(ROW, min_size=1, max_size=5), ended=ENDED)
def test_a_sequence_is_admitted_if_the_mean_use_fits_at_each_point_up_to_its_horizon(
    data: st.DataObject, live: list[Row], waiting: list[Row], ended: list[tuple[int, int]]
) -> None:
    errors = learnt(ended, data.draw(st.sampled_from([0.0, 20.0])))
    candidates = sequences(waiting)
    horizons = [data.draw(st.sampled_from([0.0, 1.0, 40.0, 300.0, inf])) for _ in candidates]
    there = list(live_pool(live, 0, errors).live.values())
    survival, needs = errors.survival_beside(there), list[float]()
    for candidate, horizon in zip(candidates, horizons, strict=True):
        there.append(candidate)
        needs.append(max(mean_use(survival, there, p) for p in POINTS if p <= max(1, horizon)))
    # As many blocks as one of them needs, or one fewer.
    need = data.draw(st.sampled_from(needs))
    num_blocks = ceil(need) - data.draw(st.integers(0, 1))
    pool = live_pool(live, max(0, num_blocks - live_pool(live, 0, errors).ledger.num_used), errors)
    excess = [need - pool.ledger.num_blocks for need in needs]
    assume(all(e == 0 or abs(e) > 1e-9 for e in excess))  # independent of the order of summation
    expected = takewhile(lambda pair: pair[1] <= 0, zip(candidates, excess, strict=True))
    admitted = KvPlan(pool, errors).admit(candidates, horizons)
    assert admitted == [candidate for candidate, _ in expected]


# No future point lies within an eighth of the logarithm of a prediction.
CLEAR = st.tuples(
    st.integers(1, 60),
    st.integers(0, 2),
    st.sampled_from([20, 40, 80, 150, 300, 600, 1200]),
    st.just(10_000),
)


@settings(deadline=None)
@given(
    live=st.lists(CLEAR, max_size=5),
    waiting=st.lists(CLEAR, min_size=1, max_size=5),
    spare_blocks=st.integers(0, 900),
)
def test_where_all_end_as_predicted_the_plan_is_the_paper_s_future_use(
    live: list[Row], waiting: list[Row], spare_blocks: int
) -> None:
    assert set(FUTURE_POINTS[2:-1]) < set(POINTS)
    errors = learnt([(100, 100)])
    pool, candidates = live_pool(live, spare_blocks, errors), sequences(waiting)
    use = FutureUse.of_live(pool, occupancy=1.0)
    expected = []
    for candidate in candidates:
        if not use.take(candidate):
            break
        expected.append(candidate)
    assert KvPlan(pool, errors).admit(candidates, [inf] * len(candidates)) == expected


# One of two ends as predicted, the other at four times that.
EITHER = [(100, 100), (400, 100)]
FRESH: Row = (8, 0, 100, 10_000)


def num_admitted(
    num_blocks: int,
    row: Row = FRESH,
    ended: list[tuple[int, int]] = EITHER,
    *,
    horizon: float = inf,
) -> int:
    """Admitted ones of twenty equal sequences, after the `ended` ones (output, predicted)."""
    plan = KvPlan(make_pool(num_blocks), learnt(ended))
    return len(plan.admit(sequences([row] * 20), [horizon] * 20))


def test_blocks_are_planned_for_sequences_that_are_expected_to_run() -> None:
    # At point 96 all are running with 26 blocks each, at 384 half of them with 98 blocks each.
    assert [num_admitted(blocks) for blocks in (20 * 49, 20 * 49 - 1, 10 * 49)] == [20, 19, 10]


@pytest.mark.parametrize(("horizon", "blocks"), [(384, 49), (383, 33), (255, 26), (95, 18), (0, 3)])
def test_points_beyond_the_horizon_are_not_planned(horizon: float, blocks: int) -> None:
    # At the last point within: half of 98 at 384, half of 66 at 256, all of 26, of 18, of 3 at 1.
    assert num_admitted(20 * blocks, horizon=horizon) == 20
    assert num_admitted(20 * blocks - 1, horizon=horizon) == 19


def test_sequences_beyond_their_prediction_are_expected_to_continue_like_the_others() -> None:
    # All of them are still running after 256 more tokens, with 104 blocks each.
    assert num_admitted(1040, row=(8, 150, 100, 10_000)) == 10
    assert num_admitted(1039, row=(8, 150, 100, 10_000)) == 9


def test_the_tokens_generated_so_far_count() -> None:
    # In 16 steps it will have generated 17 or 18 tokens, and a bin ends at 17.03.
    assert num_admitted(30, row=(8, 1, 16, 10_000), ended=[(100, 100)]) == 4
    assert num_admitted(30, row=(8, 2, 16, 10_000), ended=[(100, 100)]) == 10


def test_no_sequence_is_expected_to_end_before_the_next_step() -> None:
    # Half of them ended with the first token; these have one each, and two blocks.
    assert num_admitted(15, row=(3, 1, 1, 100), ended=[(1, 1), (8, 1)], horizon=1) == 7


def test_a_sequence_is_planned_up_to_the_length_at_which_it_is_full() -> None:
    # With 16 more tokens 6 blocks, before that 3.
    assert num_admitted(12, row=(8, 0, 100, 16), ended=[(100, 100)]) == 2
    assert num_admitted(12, row=(8, 0, 100, 15), ended=[(100, 100)]) == 4


def test_admitted_sequences_are_added_and_refused_ones_are_not() -> None:
    candidates, plan = sequences([FRESH] * 20), KvPlan(make_pool(10 * 49), learnt(EITHER))
    assert len(plan.admit(candidates[:7], [inf] * 7)) == 7
    assert plan.admit([], []) == []
    assert plan.admit(candidates[7:], [inf] * 13) == candidates[7:10]
    assert plan.admit(candidates[10:], [inf] * 10) == []
    # Up to point 64 each of the ten holds 18 of the 490 blocks.
    assert len(plan.admit(sequences([FRESH] * 20), [64] * 20)) == 17
