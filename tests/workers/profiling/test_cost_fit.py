"""The cost fit: it recovers known costs under noise, and its results are valid."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.profiles import MeasuredStep
from wire.messages import StageCosts
from workers.profiling.cost_fit import fit, predict
from workers.profiling.dummy_run import DummyRun, decode, mixed, prefill

DUMMY_RUNS: list[DummyRun] = [
    *(prefill([n]) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)),
    *(prefill([n // 8] * 8) for n in (32, 64, 128, 256, 512, 1024)),
    *(prefill([n], 512) for n in (32, 128, 512)),
    *(decode(rows, kv) for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256) for kv in (16, 256, 1024)),
    *(mixed(rows, 128, rows) for rows in (16, 64, 128)),
]
TOKENS = sorted({dummy_run.num_tokens for dummy_run in DUMMY_RUNS})


def steps_of(dummy_runs: list[DummyRun], seconds: float = 1.0) -> list[MeasuredStep]:
    return [dummy_run.measured(seconds, 1) for dummy_run in dummy_runs]


def measure(costs: StageCosts, noise: float = 0.0, outliers: float = 0.0) -> list[MeasuredStep]:
    """The dummy runs as a stage with these costs would run them, some of them delayed."""
    rng = random.Random(7)
    measured = []
    for dummy_run in DUMMY_RUNS:
        (seconds,) = predict(costs, steps_of([dummy_run]))
        seconds *= rng.gauss(1.0, noise)
        if rng.random() < outliers:
            seconds *= rng.uniform(1.5, 5.0)
        measured.append(dummy_run.measured(seconds, 1))
    return measured


@st.composite
def costs(draw: st.DrawFn) -> StageCosts:
    """Stairs at the measured numbers of tokens, and terms as large as a step's own or absent."""
    begin = draw(st.floats(1e-4, 1e-2))
    rises = draw(st.lists(st.floats(0, 1), min_size=len(TOKENS), max_size=len(TOKENS)))
    stairs = begin * np.cumsum([1.0, *rises[1:]])
    kv_s, row_s, pair_s = (draw(st.sampled_from([0.0, 0.1, 1.0, 10.0])) * begin for _ in "krp")
    return StageCosts(tuple(TOKENS), tuple(stairs), kv_s / 1e4, row_s / 1e2, pair_s / 1e5)


@given(costs())
@settings(max_examples=25, deadline=None)
def test_costs_without_noise_are_found_again(known: StageCosts) -> None:
    steps = measure(known)
    found = fit(steps)
    assert predict(found, steps) == pytest.approx(predict(known, steps), rel=0.01)


@given(costs())
@settings(max_examples=25, deadline=None)
def test_noise_and_a_few_delayed_steps_hardly_bend_the_prediction(known: StageCosts) -> None:
    found = fit(measure(known, noise=0.03, outliers=0.1))
    errors = np.abs(predict(found, measure(known)) / predict(known, measure(known)) - 1)
    assert np.median(errors) < 0.08


@given(costs())
@settings(max_examples=25, deadline=None)
def test_more_of_anything_never_costs_less(known: StageCosts) -> None:
    found = fit(measure(known, noise=0.2, outliers=0.1))
    assert list(found.seconds) == sorted(found.seconds)
    assert min(found.seconds[0], found.kv_s_per_token, found.row_s, found.pair_s) >= 0


def test_the_terms_are_separated() -> None:
    stairs = tuple(1e-3 + 1e-5 * n for n in TOKENS)
    known = StageCosts(tuple(TOKENS), stairs, 4e-8, 3e-5, 2e-8)
    found = fit(measure(known, noise=0.01, outliers=0.05))
    assert found.kv_s_per_token == pytest.approx(4e-8, rel=0.15)
    assert found.row_s == pytest.approx(3e-5, rel=0.15)
    assert found.pair_s == pytest.approx(2e-8, rel=0.15)


def test_a_stair_stays_where_it_is() -> None:
    dummy_runs = [prefill([n]) for n in (1, 64, 128, 129, 192, 256, 257)]
    steps = [t.measured(1.0 + (t.num_tokens - 1) // 128, 1) for t in dummy_runs]
    assert fit(steps).seconds == pytest.approx((1, 1, 1, 2, 2, 2, 3), rel=0.01)


def test_one_step_is_enough() -> None:
    found = fit([prefill([100]).measured(0.25, 1)])
    assert predict(found, steps_of([prefill([100])])) == pytest.approx([0.25], rel=0.01)
    assert found.num_tokens == (100,)


def test_without_measurements_no_costs_are_known() -> None:
    assert fit([]) == StageCosts()


def test_beyond_the_last_point_the_average_slope_continues() -> None:
    known = StageCosts((1, 100), (1.0, 2.0))
    assert list(predict(known, steps_of([prefill([300])]))) == [6.0]
    assert list(predict(StageCosts((1,), (1.0,)), steps_of([prefill([300])]))) == [1.0]


def test_a_dummy_run_counts_the_terms_of_the_cost_model() -> None:
    step = DummyRun("mixed", (5, 10, 0), (1, 4, 3)).measured(1.0, 2)
    assert (step.rows, step.tokens, step.kv_tokens) == (3, 8, 15)
    assert step.pairs == 4 * (10 + 2.5) + 3 * 2
