"""The cost of the router is measured on streams that come through whole."""

from collections.abc import Callable

import pytest

from benchmarks.router_cost import measure, measure_daemon


@pytest.mark.parametrize("measured", [measure, measure_daemon])
def test_all_streams_come_through(
    measured: Callable[[int, int, float], tuple[float, float, int]],
) -> None:
    cost_us, rate, num_wrong = measured(4, 12, 0.01)
    assert num_wrong == 0
    assert cost_us >= 0  # CPU time is counted in ticks of 10 ms
    assert 0 < rate < 4 / 0.01
