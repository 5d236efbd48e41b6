"""Spatial and temporal intensity in small examples (TD-Pipe, section 3.5)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.costs.cost_model import CostModel
from engine.policies.td_pipe.intensity import spatial_intensity, temporal_intensity

# A step of up to 256 rows costs one second, so the rate of a step is its number of rows.
FLAT = CostModel([1, 256], [1.0, 1.0])
PREFILLS = st.lists(st.floats(0.001, 10.0), min_size=1, max_size=8)


def spatial(num_rows: float, cost: CostModel = FLAT) -> float:
    """Spatial intensity with the batch sizes of the paper."""
    return spatial_intensity(num_rows, cost, saturating_rows=256, saturated_rows=192)


def test_spatial_intensity_is_the_rate_over_that_of_a_saturating_batch() -> None:
    assert spatial(64) == 0.25
    assert spatial(128, CostModel([1, 128, 256], [1.0, 1.0, 1.5])) == pytest.approx(0.75)


def test_decoding_is_saturated_before_the_batch_that_defines_the_peak() -> None:
    assert spatial(191) == 191 / 256
    assert spatial(192) == spatial(5000) == 1.0


def test_if_every_token_costs_the_same_no_batch_is_too_small() -> None:
    proportional = CostModel([1, 256], [0.5, 128.0])
    assert [spatial(rows, proportional) for rows in (1, 50, 191)] == [1.0, 1.0, 1.0]


def test_an_average_of_less_than_a_row_counts_as_one() -> None:
    assert spatial(0.0) == spatial(0.25) == spatial(1.0) == 1 / 256


def test_an_average_is_rounded_to_rows() -> None:
    assert spatial(63.6) == spatial(64.4) == 0.25


def test_reading_the_kv_is_not_in_the_rate() -> None:
    assert spatial(64, CostModel([1, 256], [1.0, 1.0], kv_s_per_token=9.0)) == spatial(64)


def test_temporal_intensity_is_the_part_of_a_prefill_phase_without_the_bubble() -> None:
    # The longest exceeds a decode step by 2 s; with it the phase takes 6 + 2 s.
    assert temporal_intensity([1.0, 3.0, 2.0], decode_s=1.0) == 1 - 2 / 8


def test_prefills_no_longer_than_a_decode_step_leave_no_bubble() -> None:
    assert temporal_intensity([0.5, 1.0], decode_s=1.0) == 1.0
    assert temporal_intensity([0.5], decode_s=1.0) == 1.0


def test_with_nothing_to_admit_a_switch_is_worth_nothing() -> None:
    assert temporal_intensity([], decode_s=1.0) == 0.0


def test_prefills_may_come_from_an_iterator() -> None:
    assert temporal_intensity(iter([1.0, 3.0, 2.0]), decode_s=1.0) == 0.75


@given(prefills=PREFILLS, decode_s=st.floats(0.001, 10.0))
def test_more_waiting_prefills_make_a_switch_worth_more(
    prefills: list[float], decode_s: float
) -> None:
    one = temporal_intensity(prefills, decode_s)
    more = temporal_intensity([*prefills, min(prefills)], decode_s)
    assert 0 < one <= more <= 1


@given(prefills=PREFILLS, decode_s=st.floats(0.001, 10.0), factor=st.floats(1.1, 9.0))
def test_longer_decode_steps_leave_a_smaller_bubble(
    prefills: list[float], decode_s: float, factor: float
) -> None:
    slower = temporal_intensity(prefills, decode_s * factor)
    assert slower >= temporal_intensity(prefills, decode_s)
    # The result does not depend on the unit of time.
    scaled = temporal_intensity([s * factor for s in prefills], decode_s * factor)
    assert scaled == pytest.approx(temporal_intensity(prefills, decode_s))
