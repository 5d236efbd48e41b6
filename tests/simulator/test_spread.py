"""The spread: mean and percentiles of known values."""

from hypothesis import given
from hypothesis import strategies as st

from simulator.spread import spread

TIMES = st.lists(st.floats(0, 1000), min_size=1)


def test_percentiles_lie_between_their_neighbours() -> None:
    figures = spread(range(1, 102))
    assert figures == {"mean": 51.0, "p50": 51.0, "p90": 91.0, "p99": 100.0}
    assert spread([1.0, 2.0]) == {"mean": 1.5, "p50": 1.5, "p90": 1.9, "p99": 1.99}


@given(TIMES)
def test_percentiles_ascend_within_the_values(values: list[float]) -> None:
    figures = spread(values)
    assert figures is not None
    assert min(values) <= figures["p50"] <= figures["p90"] <= figures["p99"] <= max(values)


def test_unknown_values_are_ignored_and_no_values_have_no_spread() -> None:
    assert spread([None, 2.0]) == {"mean": 2.0, "p50": 2.0, "p90": 2.0, "p99": 2.0}
    assert spread([None]) is None
