"""Expectation: the meaning of the fields of a message."""

from math import exp

import pytest

from engine.state.expectation import Expectation, expectation_of


def expect(predicted_len: int, spread: float, max_tokens: int = 1000) -> Expectation:
    """With a guess of 128 tokens, and a spread of 0.5 for point predictions."""
    return expectation_of(predicted_len, spread, max_tokens, guess=128, point_spread=0.5)


def test_without_a_prediction_lengths_vary_as_in_traffic() -> None:
    assert expect(0, 0.0) == Expectation(128, 128, 1.1, "guess")


def test_a_prediction_without_a_spread_gets_the_assumed_one() -> None:
    assert expect(200, 0.0) == Expectation(200, 200, 0.5, "point")


def test_the_median_lies_below_the_mean_of_a_lognormal() -> None:
    expected = expect(200, 0.8)
    assert (expected.mean, expected.spread, expected.kind) == (200, 0.8, "distribution")
    assert expected.median == pytest.approx(200 * exp(-0.32))


@pytest.mark.parametrize(("predicted_len", "spread"), [(0, 0.0), (500, 0.0), (5000, 0.4)])
def test_no_length_beyond_max_tokens_is_expected(predicted_len: int, spread: float) -> None:
    expected = expect(predicted_len, spread, max_tokens=10)
    assert expected.mean == 10
    assert expected.median <= 10


@pytest.mark.parametrize("spread", [1e-9, 100.0, float("inf")])
def test_implausible_spreads_are_clipped(spread: float) -> None:
    expected = expect(50, spread)
    assert 0.2 <= expected.spread <= 3.0
    assert expected.median >= 1.0
