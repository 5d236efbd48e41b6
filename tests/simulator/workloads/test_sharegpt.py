"""ShareGPT-like lengths: within the filter of the paper, with the public means."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.workloads.sharegpt import draw_lengths


@given(st.integers(), st.integers(1, 300))
def test_no_pair_is_outside_the_filter_of_the_paper(seed: int, count: int) -> None:
    pairs = draw_lengths(count, random.Random(seed))
    assert len(pairs) == count
    assert all(4 <= i < 1024 and o >= 4 and i + o <= 2048 for i, o in pairs)


@given(st.integers(), st.floats(0.001, 1.0))
def test_scaling_shortens_every_length_but_not_below_four(seed: int, scale: float) -> None:
    whole = draw_lengths(50, random.Random(seed))
    scaled = draw_lengths(50, random.Random(seed), scale)
    for pair, scaled_pair in zip(whole, scaled, strict=True):
        for length, scaled_length in zip(pair, scaled_pair, strict=True):
            assert scaled_length == max(4, round(length * scale))


def test_the_means_are_the_public_ones() -> None:
    inputs, outputs = zip(*draw_lengths(40_000, random.Random(0)), strict=True)
    assert statistics.fmean(inputs) == pytest.approx(230, rel=0.05)
    assert statistics.fmean(outputs) == pytest.approx(203, rel=0.05)
