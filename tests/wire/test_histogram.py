"""The histogram: Prometheus' upper bounds, and values in bulk as one by one."""

from hypothesis import given
from hypothesis import strategies as st

from wire.histogram import TOKEN_S, Histogram


def test_a_value_counts_up_to_the_first_bound_that_it_does_not_exceed() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.5, 100.0):
        histogram.observe(value)
    figures = histogram.figures()
    assert (figures.bounds, figures.counts, figures.total) == ((1.0, 2.0), (2, 2, 2), 107.0)


@given(st.lists(st.sampled_from([0.0, 0.001, 0.0011, 0.04, 99.0])))
def test_values_in_bulk_count_as_one_by_one(values: list[float]) -> None:
    bulk, single = Histogram(TOKEN_S), Histogram(TOKEN_S)
    bulk.observe_all(values)
    for value in values:
        single.observe(value)
    assert bulk.figures().counts == single.figures().counts
    assert abs(bulk.figures().total - single.figures().total) < 1e-9
