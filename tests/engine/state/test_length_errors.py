"""Length errors: the Kaplan-Meier estimate by hand, and real lengths given predictions."""

from math import erf, exp, inf, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.state.expectation import Expectation
from engine.state.length_errors import NUM_BINS, OUTCOME_WEIGHTS, Floats, LengthErrors, bins_of
from tests.engine.pools import distribution, learnt, make_pool, make_ready, make_sequence, point

Ended = st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), max_size=30)
LiveBins = st.lists(st.integers(0, NUM_BINS - 1), max_size=30)
HALF_A_BIN = 0.03125 + 1e-9
NONE_LIVE = np.array([], dtype=np.int64)


def bin_of(output_len: float, predicted_len: float) -> int:
    """The bin of a ratio of lengths, at a spread of 0.5."""
    return int(bins_of(np.array([output_len]), np.array([predicted_len]), np.array([0.5]))[0])


def test_a_bin_is_an_eighth_of_a_spread() -> None:
    assert bin_of(100, 100) == bin_of(106, 100) == 64
    assert (bin_of(99, 100), bin_of(107, 100)) == (63, 65)
    assert (bin_of(0, 1), bin_of(1, 5000), bin_of(5000, 1)) == (0, 0, NUM_BINS - 1)


def test_survival_is_the_kaplan_meier_estimate() -> None:
    # Of eight, two end at the prediction; two are live beyond it; of the other four, one ends at
    # twice the prediction; one is live in that bin and does not count for it; then one ends at four
    # times and one at eight times.
    errors = learnt([(100, 100), (100, 100), (200, 100), (400, 100), (800, 100)])
    live = np.array([bin_of(150, 100)] * 2 + [bin_of(200, 100)])
    survival = errors.survival(live)
    assert survival[bin_of(100, 100)] == 1.0
    assert survival[bin_of(150, 100)] == pytest.approx(6 / 8)
    assert survival[bin_of(200, 100)] == pytest.approx(6 / 8)
    assert survival[bin_of(400, 100)] == pytest.approx(6 / 8 * 2 / 3)
    assert survival[bin_of(800, 100)] == pytest.approx(6 / 8 * 2 / 3 * 1 / 2)
    assert survival[bin_of(800, 100) + 1] == 0.0


@given(ended=Ended, live=LiveBins, prior_weight=st.sampled_from([0.0, 1.0, 20.0]))
def test_survival_begins_at_one_and_never_rises(
    ended: list[tuple[int, int]], live: list[int], prior_weight: float
) -> None:
    survival = learnt(ended, prior_weight).survival(np.array(live, dtype=np.int64))
    assert survival.shape == (NUM_BINS,)
    assert survival[0] == 1.0
    assert (np.diff(survival) <= 0).all()
    assert survival[-1] >= 0.0


@given(lens=st.lists(st.integers(1, 5000), min_size=1, max_size=40))
def test_constant_predictions_become_the_distribution_of_real_lengths(lens: list[int]) -> None:
    survival = learnt([(length, 100) for length in lens]).survival(NONE_LIVE)
    bins = [bin_of(length, 100) for length in lens]
    reached = [sum(own >= b for own in bins) / len(bins) for b in range(NUM_BINS)]
    assert survival == pytest.approx(np.array(reached), abs=1e-12)


def test_short_outputs_that_end_first_do_not_bias_the_estimate() -> None:
    errors = learnt([(10, 100)] * 10)
    assert errors.survival(NONE_LIVE)[bin_of(20, 100)] == 0.0
    assert errors.survival(np.full(90, bin_of(20, 100)))[bin_of(20, 100)] == pytest.approx(0.9)


def test_before_any_sequence_has_ended_errors_are_normal() -> None:
    survival = LengthErrors(20.0).survival(NONE_LIVE)
    for sigmas in (-2.0, -1.0, 0.0, 1.0, 2.0):
        reached = 0.5 - 0.5 * erf(sigmas / 2**0.5)
        assert survival[64 + int(sigmas * 0.5 / 0.0625)] == pytest.approx(reached)


def test_errors_are_measured_in_predicted_spreads() -> None:
    # Each is one spread above the median, for any spread: 100 * e^0.3, 100 * e^0.9.
    errors = LengthErrors(0.0)
    for output_len, spread in ((135, 0.3), (246, 0.9)):
        errors.observe(output_len, Expectation(100, 100.0, spread, "distribution"))
    survival = errors.survival(NONE_LIVE)
    one_above = int(bins_of(np.array([135.0]), np.array([100.0]), np.array([0.3]))[0])
    assert survival[one_above] == 1.0
    assert survival[one_above + 1] == 0.0


def test_a_predictor_with_too_small_spreads_is_corrected() -> None:
    random, errors = np.random.default_rng(3), LengthErrors(20.0)
    for length in np.exp(log(200) + 0.8 * random.standard_normal(5_000)):
        errors.expect(distribution(200, 0.25))
        errors.observe(max(1, round(length)), distribution(200, 0.25))
    sure = distribution(200, 0.25)
    lens = errors.real_lens(
        np.array([sure.median]), np.array([sure.spread]), errors.survival(NONE_LIVE)
    )[:, 0]
    deviation = (np.log(lens[2]) - np.log(lens[0])) / 2 / 3**0.5
    assert deviation == pytest.approx(0.8, abs=0.08)


def test_predicted_distributions_are_not_drawn_towards_the_mean() -> None:
    # A calibrated predictor has already done that.
    random, errors = np.random.default_rng(4), LengthErrors(20.0)
    for median in np.exp(log(200) + 0.8 * random.standard_normal(5_000)):
        prediction = distribution(max(1, round(median)), 0.5)
        errors.expect(prediction)
        real = prediction.median * np.exp(0.5 * random.standard_normal())
        errors.observe(max(1, round(real)), prediction)
    for median in (50.0, 800.0):
        lens = errors.real_lens(np.array([median]), np.array([0.5]), errors.survival(NONE_LIVE))
        assert lens[1, 0] == pytest.approx(median, rel=0.07)


def test_a_removed_expectation_leaves_no_trace() -> None:
    errors = LengthErrors(20.0)
    errors.expect(point(100))
    errors.expect(point(1000))
    one, survival = LengthErrors(20.0), errors.survival(NONE_LIVE)
    one.expect(point(100))
    errors.expect(point(1000), -1)
    assert errors.prediction_of(70, survival) == one.prediction_of(70, survival)


def test_the_prior_has_the_weight_of_its_number_of_sequences() -> None:
    # The twenty real ones all reach the prediction, of the twenty of the prior half do.
    errors = learnt([(800, 100)] * 20, prior_weight=20.0)
    assert errors.survival(NONE_LIVE)[bin_of(100, 100)] == pytest.approx(0.75)


def test_live_sequences_count_with_their_generated_tokens() -> None:
    pool, errors = make_pool(1000), learnt([(4, 8), (8, 8), (16, 8)], prior_weight=1.0)
    for i, num_generated in enumerate((1, 5, 9)):
        make_ready(pool, make_sequence(i, 7, predicted_len=8), num_generated)
    bins = np.array([bin_of(1, 8), bin_of(5, 8), bin_of(9, 8)])
    assert errors.survival_beside(pool.live.values()).tolist() == errors.survival(bins).tolist()


def expected(errors: LengthErrors, predicted: float) -> tuple[float, float]:
    """Mean and standard deviation of the logarithm of the real length, given a prediction."""
    lens = errors.real_lens(np.array([predicted]), np.array([0.5]), errors.survival(NONE_LIVE))
    logs = np.log(lens[:, 0])
    mean = float(OUTCOME_WEIGHTS @ logs)
    return mean, float(OUTCOME_WEIGHTS @ (logs - mean) ** 2) ** 0.5


def synthetic(spread: float, noise: float, bias: float) -> tuple[LengthErrors, Floats, Floats]:
    """Errors learnt from real lengths around 300, and the logarithms (real, predicted)."""
    random = np.random.default_rng(7)
    real = log(300) + spread * random.standard_normal(20_000)
    predicted = real - bias + noise * random.standard_normal(20_000)
    errors = LengthErrors(20.0)
    for r, p in zip(np.rint(np.exp(real)), np.rint(np.exp(predicted)), strict=True):
        errors.expect(point(max(1, int(p))))
        errors.observe(max(1, int(r)), point(max(1, int(p))))
    return errors, real, predicted


@pytest.mark.parametrize(("spread", "noise", "bias"), [(0.8, 0.5, 0.0), (0.6, 0.6, 0.3)])
@pytest.mark.parametrize("predicted", [150.0, 300.0, 600.0])
def test_given_a_prediction_the_real_length_is_that_of_similar_predictions(
    spread: float, noise: float, bias: float, predicted: float
) -> None:
    errors, real, all_predicted = synthetic(spread, noise, bias)
    alike = real[abs(all_predicted - log(predicted)) < 0.1]
    mean, deviation = expected(errors, predicted)
    assert mean == pytest.approx(alike.mean(), abs=0.06)
    assert deviation == pytest.approx(alike.std(), abs=0.06)


@pytest.mark.parametrize("real_len", [40.0, 300.0, 2000.0])
def test_the_prediction_of_a_length_is_the_one_that_makes_it_expected(real_len: float) -> None:
    errors, _, _ = synthetic(0.8, 0.5, 0.3)
    prediction = errors.prediction_of(real_len, errors.survival(NONE_LIVE))
    assert exp(expected(errors, prediction)[0]) == pytest.approx(real_len)


def test_with_sigmas_lower_predictions_suffice() -> None:
    errors, _, _ = synthetic(0.8, 0.5, 0.0)
    survival = errors.survival(NONE_LIVE)
    by_sigmas = [errors.prediction_of(800, survival, sigmas) for sigmas in (0.0, 1.0, 3.0)]
    assert by_sigmas == sorted(by_sigmas, reverse=True)
    mean, deviation = expected(errors, by_sigmas[1])
    assert mean + deviation == pytest.approx(log(800))


def test_uninformative_predictions_qualify_all_sequences_or_none() -> None:
    errors = learnt([(100, 100), (1000, 100)])
    errors.expect(point(100))
    survival = errors.survival(NONE_LIVE)
    # About 316 tokens are expected of every sequence.
    assert (errors.prediction_of(250, survival), errors.prediction_of(400, survival)) == (0, inf)


def test_extreme_predictions_are_drawn_towards_the_mean() -> None:
    errors, _, _ = synthetic(0.8, 0.5, 0.0)
    assert 300 < exp(expected(errors, 3000)[0]) < 2700
    assert 33 < exp(expected(errors, 30)[0]) < 300


def test_a_constant_prediction_contains_only_the_mean() -> None:
    errors = LengthErrors(0.0)
    for output_len in (100, 1000):
        errors.expect(point(100))
        errors.observe(output_len, point(100))
    lens = errors.real_lens(np.array([100.0]), np.array([0.5]), errors.survival(NONE_LIVE))
    assert np.log(lens / 100) == pytest.approx(np.full((3, 1), log(10) / 2), abs=HALF_A_BIN)


def test_accurate_predictions_are_used_unchanged() -> None:
    errors = LengthErrors(0.0)
    for length in (10, 100, 1000):
        errors.expect(point(length))
        errors.observe(length, point(length))
    lens = errors.real_lens(
        np.array([20.0, 500.0]), np.array([0.5, 0.5]), errors.survival(NONE_LIVE)
    )
    assert np.log(lens / [20.0, 500.0]) == pytest.approx(np.zeros((3, 2)), abs=HALF_A_BIN)
