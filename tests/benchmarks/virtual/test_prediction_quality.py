"""Prediction quality: the information that the simulated predictors have."""

import random

import numpy as np
import pytest

from benchmarks.virtual.prediction_quality import Work, by_class, constant, noisy, oracle, sharegpt
from predictor.classes import LengthClasses

LENS = sharegpt(4000, 0).output_lens


def test_the_class_predictor_is_right_as_often_as_it_should_be() -> None:
    predictions = by_class(LENS, random.Random(0), accuracy=0.55)
    # Each predicted class has a mean of its own, in the order of the classes.
    means = sorted({mean for mean, _ in predictions})
    assert len(means) == 5
    predicted = np.searchsorted(means, [mean for mean, _ in predictions])
    assert np.mean(predicted == LengthClasses.fit(LENS).of(LENS)) == pytest.approx(0.55, abs=0.02)


def test_the_class_predictor_is_calibrated() -> None:
    predictions = by_class(LENS, random.Random(0), accuracy=0.55)
    assert sum(mean for mean, _ in predictions) == pytest.approx(sum(LENS), rel=0.01)
    for mean, spread in set(predictions):
        members = [n for n, other in zip(LENS, predictions, strict=True) if other == (mean, spread)]
        assert np.mean(members) == pytest.approx(mean, abs=0.5)
        assert np.log(members).std() == pytest.approx(spread)


def test_a_better_class_predictor_is_surer() -> None:
    spreads = [
        np.mean([spread for _, spread in by_class(LENS, random.Random(0), accuracy)])
        for accuracy in (0.3, 0.6, 1.0)
    ]
    assert spreads == sorted(spreads, reverse=True)


def test_the_oracle_knows_the_constant_does_not_and_the_noisy_scatters() -> None:
    assert oracle([3, 7]) == [(3, 0.0), (7, 0.0)]
    assert constant([3, 7]) == [(0, 0.0), (0, 0.0)]
    errors = np.log([n for n, _ in noisy([1000] * 4000, random.Random(0))]) - np.log(1000)
    assert errors.std() == pytest.approx(0.5, abs=0.03)


def test_requests_that_are_too_long_are_left_out_with_their_predictions() -> None:
    work = Work("some", [10, 20, 30], [5, 90, 6], {"oracle": [(5, 0.0), (90, 0.0), (6, 0.0)]})
    fitting = work.fitting(100)
    arrivals = fitting.arrivals("oracle")
    lens = [(a.num_prompt_tokens, a.output_len, a.predicted_len) for a in arrivals]
    assert lens == [(10, 5, 5), (30, 6, 6)]
