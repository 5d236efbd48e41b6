"""The classes: their edges, their lengths, and mixtures of them computed by hand."""

import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.classes import NUM_QUANTILES, LengthClasses, levels, percentiles


def test_five_classes_end_where_the_paper_s_do() -> None:
    assert percentiles(5) == (25.0, 50.0, 75.0, 99.0)
    classes = LengthClasses.fit(range(1, 1001), 5)
    assert classes.edges == (250, 500, 750, 990)


def test_other_numbers_cut_the_first_99_percent_into_equal_parts() -> None:
    assert percentiles(4) == (33.0, 66.0, 99.0)
    assert percentiles(2) == (99.0,)
    with pytest.raises(ValueError, match="1 classes"):
        percentiles(1)


def test_an_edge_is_the_last_length_of_its_class() -> None:
    classes = LengthClasses.fit(range(1, 1001), 5)
    assert classes.of([1, 250, 251, 500, 990, 991, 5000]).tolist() == [0, 0, 1, 1, 3, 4, 4]


def test_a_class_keeps_the_mean_and_the_distribution_of_its_lengths() -> None:
    classes = LengthClasses.fit([10] * 98 + [100, 300], 2)
    assert classes.edges == (100,)
    assert classes.means == ((10 * 98 + 100) / 99, 300.0)
    assert classes.quantiles[1] == (300.0,) * NUM_QUANTILES
    assert set(classes.quantiles[0]) == {10.0}


def test_many_equal_lengths_leave_no_class_empty() -> None:
    classes = LengthClasses.fit([7] * 95 + [9] * 5, 5)
    assert classes.edges == (7,)
    assert classes.means == (7.0, 9.0)


def test_lengths_that_are_all_equal_are_one_class() -> None:
    classes = LengthClasses.fit([7] * 60, 16)
    assert len(classes) == 1
    assert classes.mixture([1.0]).means.tolist() == [7.0]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(2, 20))
def test_every_class_holds_a_length_and_every_length_has_a_class(
    lens: list[int], num_classes: int
) -> None:
    classes = LengthClasses.fit(lens, num_classes)
    assert len(classes) <= num_classes
    assert set(classes.of(lens).tolist()) == set(range(len(classes)))


def test_a_sure_prediction_is_the_class_itself() -> None:
    classes = LengthClasses.fit([10] * 50 + [1000] * 50, 5)
    mixture = classes.mixture([[1.0, 0.0], [0.0, 1.0]])
    assert mixture.means.tolist() == [10.0, 1000.0]
    assert mixture.spreads.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_a_mixture_has_the_mean_and_the_spread_computed_by_hand() -> None:
    classes = LengthClasses.fit([10] * 50 + [1000] * 50, 5)
    mixture = classes.mixture([[0.5, 0.5], [0.9, 0.1]])
    assert mixture.means.tolist() == pytest.approx([505.0, 109.0])
    # Two points a factor of 100 apart: the deviation is sqrt(p q) times ln 100.
    assert mixture.spreads.tolist() == pytest.approx([0.5 * math.log(100), 0.3 * math.log(100)])
    assert mixture.quantiles.shape == (2, NUM_QUANTILES)
    assert (mixture.quantiles[1] == 10).mean() == pytest.approx(0.9, abs=1 / NUM_QUANTILES)
    assert sorted(set(mixture.quantiles[1].tolist())) == [10.0, 1000.0]


def test_the_mixture_in_the_classes_own_shares_is_the_training_data() -> None:
    lens = np.random.default_rng(0).lognormal(4, 1, 20_000).astype(int) + 1
    classes = LengthClasses.fit(lens, 8)
    shares = np.bincount(classes.of(lens)) / len(lens)
    mixture = classes.mixture(shares)
    assert mixture.means[0] == pytest.approx(lens.mean())
    assert mixture.spreads[0] == pytest.approx(np.log(lens).std(), rel=0.05)
    middle = slice(1, NUM_QUANTILES - 1)
    expected = np.quantile(lens, levels())[middle]
    assert mixture.quantiles[0][middle] == pytest.approx(expected, rel=0.1)


def test_classes_pass_through_json() -> None:
    classes = LengthClasses.fit(range(1, 300), 6)
    assert LengthClasses.from_json(json.loads(json.dumps(classes.to_json()))) == classes


@pytest.mark.parametrize(
    "change",
    [
        {"edges": [5, 5]},
        {"edges": [5]},
        {"means": [1.0, 2.0]},
        {"means": [0.0, 2.0, 3.0]},
        {"quantiles": [[1.0], [2.0], [3.0]]},
        {"quantiles": [[1.0] * 33, [2.0] * 33, [3.0] * 32]},
        {"edges": "5"},
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    good = LengthClasses((5, 9), (1.0, 7.0, 20.0), ((1.0,) * 33, (7.0,) * 33, (20.0,) * 33))
    with pytest.raises((msgspec.ValidationError, ValueError)):
        LengthClasses.from_json({**good.to_json(), **change})
