"""The horizon: a sequence has paid for its preemption when it has saved the recomputation."""

from math import ceil, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.costs.cost_model import CostModel
from engine.policies.temporal.horizon import turns_to_pay

# A step of up to 100 rows takes a second; with ten rows, each costs 0.1 s.
FLAT = CostModel([1, 100], [1.0, 1.0])


def test_a_row_has_paid_when_it_has_saved_the_cost_of_its_tokens_and_prompt() -> None:
    # Each of ten turns saves 0.1 s; feeding 90 + 10 tokens again costs 100 * 0.01 s.
    assert turns_to_pay(FLAT, num_rows=10, length=90, prefill_s=0.01) == pytest.approx(10)


def test_more_expensive_decodes_pay_sooner() -> None:
    # At 2 s per step each of five turns saves 0.2 s; feeding 95 + 5 tokens again costs 1 s.
    dear = CostModel([1, 100], [2.0, 2.0])
    assert turns_to_pay(dear, num_rows=10, length=95, prefill_s=0.01) == pytest.approx(5)


def test_nothing_pays_if_a_decode_token_is_as_cheap_as_a_prefill_token() -> None:
    assert turns_to_pay(FLAT, num_rows=100, length=1, prefill_s=0.01) == inf
    assert turns_to_pay(FLAT, num_rows=99, length=1, prefill_s=0.01) < inf


@given(
    num_rows=st.integers(1, 100),
    length=st.integers(1, 500),
    prefill_s=st.floats(0.0001, 0.1),
)
def test_after_these_turns_the_saving_equals_the_cost(
    num_rows: int, length: int, prefill_s: float
) -> None:
    decode_s = 1.0 / num_rows
    turns = turns_to_pay(FLAT, num_rows, length, prefill_s)
    for count in {1, 2, 10, 100, 1000, *([] if turns == inf else [ceil(turns)])}:
        saved, price = count * decode_s, (length + count) * prefill_s
        if abs(saved - price) > 1e-9 * price:
            assert (saved > price) == (count > turns)


@given(num_rows=st.integers(1, 98), length=st.integers(1, 500))
def test_larger_micro_batches_and_longer_sequences_look_further_ahead(
    num_rows: int, length: int
) -> None:
    turns = turns_to_pay(FLAT, num_rows, length, 0.01)
    assert turns_to_pay(FLAT, num_rows + 1, length, 0.01) > turns
    assert turns_to_pay(FLAT, num_rows, length + 1, 0.01) > turns
