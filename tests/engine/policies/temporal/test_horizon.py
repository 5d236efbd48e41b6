"""The horizon: a preemption has paid for itself when what it saved buys feeding it again."""

from math import ceil, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.costs.cost_model import CostModel
from engine.policies.temporal.horizon import turns_to_pay

# A step of up to 100 rows takes a second; of ten rows each costs 0.1 s.
FLAT = CostModel([1, 100], [1.0, 1.0])


def test_a_row_has_paid_when_it_saved_the_price_of_its_tokens_and_its_prompt() -> None:
    # Each of ten rounds saves 0.1 s; feeding 90 + 10 tokens again costs 100 * 0.01 s.
    assert turns_to_pay(FLAT, num_rows=10, length=90, prefill_s=0.01) == pytest.approx(10)


def test_dearer_decodes_have_paid_sooner() -> None:
    # At 2 s a step each of five rounds saves 0.2 s; feeding 95 + 5 tokens again costs 1 s.
    dear = CostModel([1, 100], [2.0, 2.0])
    assert turns_to_pay(dear, num_rows=10, length=95, prefill_s=0.01) == pytest.approx(5)


def test_nothing_pays_where_a_decode_is_as_cheap_as_a_prefill_token() -> None:
    assert turns_to_pay(FLAT, num_rows=100, length=1, prefill_s=0.01) == inf
    assert turns_to_pay(FLAT, num_rows=99, length=1, prefill_s=0.01) < inf


@given(
    num_rows=st.integers(1, 100),
    length=st.integers(1, 500),
    prefill_s=st.floats(0.0001, 0.1),
)
def test_the_rounds_are_those_after_which_saving_and_price_are_even(
    num_rows: int, length: int, prefill_s: float
) -> None:
    decode_s = 1.0 / num_rows
    rounds = turns_to_pay(FLAT, num_rows, length, prefill_s)
    for count in {1, 2, 10, 100, 1000, *([] if rounds == inf else [ceil(rounds)])}:
        saved, price = count * decode_s, (length + count) * prefill_s
        if abs(saved - price) > 1e-9 * price:
            assert (saved > price) == (count > rounds)


@given(num_rows=st.integers(1, 98), length=st.integers(1, 500))
def test_larger_micro_batches_and_longer_sequences_look_further_ahead(
    num_rows: int, length: int
) -> None:
    rounds = turns_to_pay(FLAT, num_rows, length, 0.01)
    assert turns_to_pay(FLAT, num_rows + 1, length, 0.01) > rounds
    assert turns_to_pay(FLAT, num_rows, length + 1, 0.01) > rounds
