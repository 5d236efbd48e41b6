"""The cost model's error: which steps are run, and the content of the table."""

from itertools import islice

import pytest

from benchmarks.costs.cost_model_error import KINDS, in_service, main, random_dummy_runs, table
from wire.messages import StageCosts
from workers.profiling.dummy_run import decode, prefill
from workers.profiling.plan import Limits

LIMITS = Limits(512, 64, 256, 4096, 16)


def test_random_steps_are_of_all_kinds_and_within_the_limits() -> None:
    dummy_runs = list(islice(random_dummy_runs(LIMITS, 0), 200))
    assert {dummy_run.kind for dummy_run in dummy_runs} == set(KINDS)
    assert all(LIMITS.allow(dummy_run) for dummy_run in dummy_runs)
    assert len({dummy_run.num_tokens for dummy_run in dummy_runs}) > 50
    assert dummy_runs == list(islice(random_dummy_runs(LIMITS, 0), 200))
    assert dummy_runs != list(islice(random_dummy_runs(LIMITS, 1), 200))


def test_the_table_has_the_errors_of_the_predictions() -> None:
    steps = [prefill([10]).measured(1.0, 1), decode(1, 9).measured(2.0, 1)]
    lines = table([StageCosts((1, 10), (1.5, 1.5))], [steps]).splitlines()
    assert [line.split("|")[1:4] for line in lines[2:]] == [
        [" 0 ", " prefill ", " 1 "],
        [" 0 ", " decode ", " 1 "],
        [" 0 ", " all ", " 2 "],
    ]
    assert "50.0% | 50.0% | +50.0%" in lines[2]
    assert "25.0% | 25.0% | -25.0%" in lines[3]


def test_in_service_a_step_is_predicted_only_by_those_before_it() -> None:
    steps = [prefill([10]).measured(3.0, 1)] * 100
    costs = StageCosts((1, 10), (1.0, 1.0))
    predicted = in_service(costs, steps)
    assert predicted[0] == 1.0
    assert predicted[-1] == pytest.approx(3.0)
    last = table([costs], [steps], num_learnt=60).splitlines()[-1]
    assert "| 40 |" in last
    assert last.endswith("| 0.0% | 0.0% | +0.0% |")


def test_a_stage_that_knows_no_costs_has_no_lines() -> None:
    assert len(table([StageCosts()], [[decode(1, 9).measured(2.0, 1)]]).splitlines()) == 2


def test_a_wrong_setting_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--polcy=temporal"]) == 2
    assert "unknown flag --polcy" in capsys.readouterr().err
