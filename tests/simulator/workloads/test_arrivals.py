"""Arrivals: the rate holds, the seed decides, burstiness is the spread of the gaps."""

import math
import statistics
from itertools import pairwise

import pytest

from simulator.workloads.arrivals import arrival_times


def gaps(burstiness: float) -> list[float]:
    times = arrival_times(20_000, 8.0, burstiness, seed=1)
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_the_gaps_have_the_mean_of_the_rate_whatever_the_burstiness(burstiness: float) -> None:
    assert statistics.fmean(gaps(burstiness)) == pytest.approx(1 / 8, rel=0.05)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_the_gaps_vary_by_one_over_the_root_of_the_burstiness(burstiness: float) -> None:
    values = gaps(burstiness)
    variation = statistics.pstdev(values) / statistics.fmean(values)
    assert variation == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_an_infinite_rate_is_all_at_once() -> None:
    assert arrival_times(3, math.inf, 1.0, seed=0) == [0.0, 0.0, 0.0]


def test_the_first_request_arrives_at_once_and_none_before_its_forerunner() -> None:
    times = arrival_times(100, 3.0, 1.0, seed=5)
    assert times[0] == 0.0
    assert times == sorted(times)


def test_another_seed_gives_other_times_and_the_same_seed_the_same() -> None:
    assert arrival_times(5, 1.0, 1.0, seed=1) == arrival_times(5, 1.0, 1.0, seed=1)
    assert arrival_times(5, 1.0, 1.0, seed=1) != arrival_times(5, 1.0, 1.0, seed=2)
