"""The benchmark of many instances: the search for goodput, and its tables."""

from dataclasses import dataclass, replace

import pytest

from benchmarks.virtual.macro import __main__ as table
from benchmarks.virtual.macro import day
from benchmarks.virtual.macro.goodput import TOLERANCE, Search, TooManyMissed
from benchmarks.virtual.macro.systems import (
    ECOSERVE,
    TDPIPE,
    VLLM_LIKE,
    WORKLOADS,
    Cluster,
    Disaggregated,
    System,
    Traffic,
    Workload,
)
from simulator.arrival import SequenceTimes, Targets
from simulator.macro.simulation import MacroRun

CLUSTER = Cluster("codellama-34b", 4, 4)
TARGETS = Targets(1.0, 0.1)
LITTLE = Workload("alpaca", TARGETS, 3.0)


def times(ttft_s: float, tpot_s: float = 0.05) -> SequenceTimes:
    """A request of eleven tokens."""
    return SequenceTimes(0.0, 10, 11, ttft_s, ttft_s + 10 * tpot_s)


@dataclass(frozen=True, slots=True)
class Limited(System):
    """A system that meets all targets up to a rate, and `share` of them above it."""

    limit: float = 13.0
    share: float = 0.5

    def run(self, cluster: Cluster, traffic: Traffic, is_hopeless: object) -> MacroRun:  # noqa: ARG002
        good = 1.0 if traffic.rate <= self.limit else self.share
        return MacroRun([times(0.5) if i < 100 * good else times(2.0) for i in range(100)])


@pytest.mark.parametrize("limit", [0.3, 5.0, 13.0, 61.0])
def test_the_highest_rate_within_the_targets_is_found(limit: float) -> None:
    system = Limited("limited", "adaptive", "temporal", limit=limit)
    found = Search(system, CLUSTER, Traffic(LITTLE, 1.0), 0.9).goodput()
    assert limit / (1 + TOLERANCE) <= found <= limit


@pytest.mark.parametrize(("makespan_s", "expected"), [(2.0, 28.0), (1.0, 5.0)])
def test_attainment_may_fall_and_rise_again(makespan_s: float, expected: float) -> None:
    """A rate that is just missed does not end the search, one that is missed early does."""

    class Dipping(Limited):
        def run(self, cluster: Cluster, traffic: Traffic, is_hopeless: object) -> MacroRun:
            run = Limited.run(self, cluster, traffic, is_hopeless)
            if 5.0 < traffic.rate < 19.0:
                run.sequences[:20] = [times(2.0)] * 20
            for i, each in enumerate(run.sequences):
                run.sequences[i] = replace(each, arrived_at=i * 2.0 / len(run.sequences))
            run.makespan_s = makespan_s
            return run

    dipping = Dipping("dipping", "adaptive", "temporal", limit=28.0, share=0.0)
    found = Search(dipping, CLUSTER, Traffic(LITTLE, 1.0), 0.9).goodput()
    assert expected / (1 + TOLERANCE) <= found <= expected


def test_a_share_of_requests_may_miss_and_nothing_at_all_is_zero() -> None:
    mostly = Limited("mostly", "adaptive", "temporal", limit=2.0, share=0.95)
    traffic = Traffic(LITTLE, 1.0)
    assert Search(mostly, CLUSTER, traffic, 0.99).goodput() == pytest.approx(2.0, rel=TOLERANCE)
    never = Limited("never", "adaptive", "temporal", limit=0.0, share=0.0)
    assert Search(never, CLUSTER, traffic, 0.9).goodput() == 0.0


def test_the_best_division_is_found_and_tried_first_at_the_next_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []

    def run_divided(
        _self: object, _cluster: object, traffic: Traffic, number: int, _hopeless: object
    ) -> MacroRun:
        tried.append(number)
        is_met = number == 3 and traffic.rate <= 20.0
        return MacroRun([times(0.5 if is_met else 2.0)] * 10)

    monkeypatch.setattr(Disaggregated, "run_divided", run_divided)
    search = Search(Disaggregated("divided", "10 GbE"), CLUSTER, Traffic(LITTLE, 1.0), 0.9)
    assert search.goodput() == pytest.approx(20.0, rel=TOLERANCE)
    assert {1, 2, 3} == set(tried)
    assert tried.count(3) > tried.count(1)


def test_a_run_is_hopeless_once_too_many_requests_have_missed() -> None:
    late = SequenceTimes(0.0, 10, 11)
    later = SequenceTimes(5.0, 10, 11)
    hopeless = TooManyMissed(TARGETS, 1)
    assert not hopeless([late, late, later], 0.9)
    assert hopeless([late, late, later], 1.1)
    assert not hopeless([late, times(0.5), later], 1.1)
    assert hopeless([late, times(0.5, tpot_s=0.2), later], 1.1)


def test_every_case_has_a_row_and_ratios_follow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {VLLM_LIKE.name: 2.0, ECOSERVE.name: 3.0, TDPIPE.name: 5.0}
    monkeypatch.setattr(Search, "goodput", lambda self: rates[self._system.name])
    names = [VLLM_LIKE.name, ECOSERVE.name, TDPIPE.name]
    arguments = ["--models", "codellama-34b", "--attainments", "0.9", "--systems", *names]
    assert table.main(arguments) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "| model | workload | attainment | vLLM-like | EcoServe | tdpipe |"
    for row, workload in zip(rows[2:], WORKLOADS, strict=False):
        assert row == f"| codellama-34b | {workload.name} | 90% | 2.0 | 3.0 | 5.0 |"
    assert rows[5] == "| all | over vLLM-like | 90% | 1.00x | 1.50x | 2.50x |"
    assert rows[6] == "| all | over EcoServe | 90% | 0.67x | 1.00x | 1.67x |"


def test_the_rate_of_a_day_rises_and_falls() -> None:
    arrivals = day.arrivals_of_a_day(5.0)
    third = day.DAY_S / 3
    counts = [sum(i * third <= a.at_s < (i + 1) * third for a in arrivals) for i in range(3)]
    assert counts[1] > 1.5 * counts[0]
    assert counts[1] > 1.5 * counts[2]
    assert len(arrivals) == pytest.approx(5.0 * day.DAY_S * (1 + day.LOWEST) / 2, rel=0.1)
    assert all(not a.offline for a in arrivals)
    assert WORKLOADS[1] is day.SHAREGPT
