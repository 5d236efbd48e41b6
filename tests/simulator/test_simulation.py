"""The simulation: times computed by hand, with the production scheduler."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from configs.config import EngineConfig
from engine.policies.registry import POLICIES
from simulator.arrival import Arrival, SequenceTimes
from simulator.pipeline import Node
from simulator.simulation import Run, SimulationError, simulate
from wire.messages import StageCosts

# Binary fractions, so that sums are exact.
OVERHEAD_S, HOP_S = 0.25, 0.5


def constant(seconds: float) -> StageCosts:
    """Costs that are the same for every step."""
    return StageCosts((1,), (seconds,))


def run(
    *costs: StageCosts,
    arrivals: list[Arrival],
    record: bool = True,
    max_open: int | None = None,
    num_slices: int = 1,
    hop_s: float = HOP_S,
    **settings: Any,
) -> Run:
    config = EngineConfig.of(
        **{
            "policy": "separate",
            "pipeline_parallel_size": len(costs),
            "virtual_pipeline_size": num_slices,
            **settings,
        }
    )
    node = Node(
        costs, 100, max_model_len=256, overhead_s=OVERHEAD_S, hop_s=hop_s, num_slices=num_slices
    )
    return simulate(config, node, arrivals, record=record, max_open=max_open)


def spans(run: Run) -> list[tuple[int, int, float, float]]:
    """Step, stage, begin and end in seconds."""
    return [(span.step_id, span.stage, span.began_at, span.ended_at) for span in run.spans]


def mixed_arrivals(seed: int) -> list[Arrival]:
    """Requests of all lengths, some of which arrive together."""
    return [
        Arrival(0.5 * (i // 3), 1 + (seed + 37 * i) % 90, 1 + (seed + 11 * i) % 17, 1 + i % 20)
        for i in range(25)
    ]


def test_one_request_on_one_stage_takes_a_step_for_each_token() -> None:
    result = run(constant(1.0), arrivals=[Arrival(2.0, 5, 3)])
    step_s = 1.0 + OVERHEAD_S + HOP_S
    ends = [2.0 + number * step_s for number in (1, 2, 3)]
    times = SequenceTimes(2.0, 5, 3, ends[0], ended_at=ends[2], second_token_at=ends[1])
    assert result.sequences == [times]
    assert result.makespan_s == 2.0 + 3 * step_s
    assert result.busy_s == [3 * 1.25]


def test_one_request_on_two_stages_passes_them_in_turn() -> None:
    result = run(constant(1.0), constant(2.0), arrivals=[Arrival(0.0, 5, 2)])
    assert spans(result) == [
        (0, 0, 0.0, 1.25),
        (0, 1, 1.75, 4.0),
        (1, 0, 4.5, 5.75),
        (1, 1, 6.25, 8.5),
    ]
    assert result.sequences == [SequenceTimes(0.0, 5, 2, 4.5, 9.0, 9.0)]
    assert result.busy_s == [2.5, 4.5]
    assert result.counters.steps == 2


def test_a_second_micro_batch_waits_while_a_stage_is_busy() -> None:
    result = run(constant(1.0), constant(2.0), arrivals=[Arrival(0.0, 5, 2)] * 2)
    assert spans(result) == [
        (0, 0, 0.0, 1.25),
        (0, 1, 1.75, 4.0),
        (1, 0, 1.25, 2.5),
        (1, 1, 4.0, 6.25),  # arrives at 3.0
        (2, 0, 4.5, 5.75),
        (2, 1, 6.25, 8.5),
        (3, 0, 6.75, 8.0),
        (3, 1, 8.5, 10.75),
    ]
    assert [times.ended_at for times in result.sequences] == [9.0, 11.25]
    assert result.busy_s == [5.0, 9.0]


def test_with_virtual_stages_a_step_passes_each_stage_once_for_each_slice() -> None:
    result = run(constant(1.0), constant(2.0), arrivals=[Arrival(0.0, 5, 1)], num_slices=2)
    # Half of the stage's time, but the whole overhead, and a hop after each slice.
    assert spans(result) == [
        (0, 0, 0.0, 0.75),
        (0, 1, 1.25, 2.5),
        (0, 0, 3.0, 3.75),
        (0, 1, 4.25, 5.5),
    ]
    assert result.makespan_s == 6.0
    assert result.busy_s == [1.5, 2.5]


def test_a_later_slice_of_an_older_step_goes_before_an_earlier_slice_of_a_newer_one() -> None:
    arrivals = [Arrival(0.0, 5, 1), Arrival(0.0, 5, 1), Arrival(0.25, 5, 1)]
    settings = {"policy": "td-pipe", "max_num_batched_tokens": 5}
    result = run(constant(1.5), arrivals=arrivals, num_slices=2, hop_s=0.0, **settings)
    assert [step for step, _, _, _ in spans(result)] == [0, 0, 1, 1, 2, 2]
    result = run(constant(1.5), arrivals=arrivals, num_slices=2, hop_s=0.5, **settings)
    # Nothing waits for long for what has not arrived.
    assert [step for step, _, _, _ in spans(result)] == [0, 1, 0, 1, 2, 2]


def test_virtual_stages_shorten_filling_and_draining() -> None:
    """S steps of t seconds in S stages take S t + (S - 1) t / v."""
    for num_slices in (1, 2, 4):
        cost = constant(4.0 - num_slices * OVERHEAD_S)  # so that a step takes 4 s on a stage
        result = run(
            *[cost] * 4,
            arrivals=[Arrival(0.0, 60, 1)] * 4,
            num_slices=num_slices,
            hop_s=0.0,
            max_num_batched_tokens=60,
        )
        assert result.makespan_s == 4 * 4.0 + 3 * 4.0 / num_slices
        assert result.busy_s == [16.0] * 4


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_slices", [2, 3])
def test_with_virtual_stages_slices_do_not_overlap_and_each_runs_all_steps_in_order(
    policy: str, num_slices: int
) -> None:
    costs = [constant(1.0), constant(1.5), constant(0.5)]
    arrivals = mixed_arrivals(seed=0)
    result = run(*costs, arrivals=arrivals, policy=policy, block_size=4, num_slices=num_slices)
    assert result.counters.generated_tokens == sum(a.output_len for a in arrivals)
    for stage, busy_s in enumerate(result.busy_s):
        mine = [span for span in result.spans if span.stage == stage]
        assert all(before.ended_at <= after.began_at for before, after in pairwise(mine))
        assert sum(span.ended_at - span.began_at for span in mine) == pytest.approx(busy_s)
        visits = dict.fromkeys(range(result.counters.steps), 0)
        slices: list[list[int]] = [[] for _ in range(num_slices)]
        for span in mine:
            slices[visits[span.step_id]].append(span.step_id)
            visits[span.step_id] += 1
        assert slices == [sorted(visits)] * num_slices


def test_a_step_costs_its_tokens_and_the_kv_that_they_read() -> None:
    costs = StageCosts((1, 11), (1.0, 2.0), kv_s_per_token=0.125)
    result = run(costs, arrivals=[Arrival(0.0, 11, 3)])
    seconds = [ended_at - began_at for _, _, began_at, ended_at in spans(result)]
    assert seconds == [2.25, 1.25 + 11 / 8, 1.25 + 12 / 8]


def test_chunks_of_a_prompt_read_the_earlier_ones() -> None:
    costs = StageCosts((1,), (1.0,), kv_s_per_token=0.125)
    result = run(costs, arrivals=[Arrival(0.0, 20, 1)], max_num_batched_tokens=8)
    seconds = [ended_at - began_at for _, _, began_at, ended_at in spans(result)]
    assert seconds == [1.25, 1.25 + 8 / 8, 1.25 + 16 / 8]


def test_a_request_is_unknown_before_it_arrives() -> None:
    arrivals = [Arrival(100.0, 5, 1), Arrival(0.0, 5, 1), Arrival(100.5, 5, 1)]
    result = run(constant(1.0), arrivals=arrivals)
    # The third arrives while the first is in flight, and has to wait for it.
    assert [times.first_token_at for times in result.sequences] == [101.75, 1.75, 103.5]
    assert [times.ended_at for times in result.sequences] == [101.75, 1.75, 103.5]


def test_with_max_open_the_next_request_arrives_when_one_has_ended() -> None:
    arrivals = [Arrival(0.0, 5, 1), Arrival(0.0, 5, 3), Arrival(0.0, 5, 1), Arrival(0.0, 5, 1)]
    result = run(constant(1.0), arrivals=arrivals, max_open=2)
    first, second, third, fourth = result.sequences
    assert (first.arrived_at, second.arrived_at) == (0.0, 0.0)
    assert third.arrived_at == first.ended_at < second.ended_at
    assert fourth.arrived_at == min(second.ended_at, third.ended_at)


def test_the_drain_begins_on_each_stage_when_it_has_fed_the_last_prompt() -> None:
    arrivals = [Arrival(0.0, 5, 2), Arrival(10.0, 5, 3)]
    result = run(constant(1.0), constant(2.0), arrivals=arrivals)
    assert result.drain_began_at == [11.25, 11.75 + 2.25]
    assert result.busy_before_drain_s == [3 * 1.25, 3 * 2.25]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_arrivals_give_the_same_run(policy: str) -> None:
    costs = [constant(1.0), constant(1.5), constant(0.5)]
    first, second = (
        run(*costs, arrivals=mixed_arrivals(seed=0), policy=policy, block_size=4) for _ in range(2)
    )
    assert first == second
    assert first != run(*costs, arrivals=mixed_arrivals(seed=1), policy=policy, block_size=4)


@pytest.mark.parametrize("policy", POLICIES)
def test_stages_do_one_step_at_a_time_and_all_steps_in_order(policy: str) -> None:
    costs = [constant(1.0), constant(1.5), constant(0.5)]
    result = run(*costs, arrivals=mixed_arrivals(seed=0), policy=policy, block_size=4)
    for stage, busy_s in enumerate(result.busy_s):
        mine = [span for span in result.spans if span.stage == stage]
        assert [span.step_id for span in mine] == list(range(result.counters.steps))
        assert all(before.ended_at <= after.began_at for before, after in pairwise(mine))
        assert sum(span.ended_at - span.began_at for span in mine) == busy_s
    by_step = sorted(spans(result))
    for (step, _, _, ended_at), (next_step, _, began_at, _) in pairwise(by_step):
        assert step != next_step or began_at >= ended_at + HOP_S


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_with_its_own_number_of_tokens(policy: str) -> None:
    arrivals = mixed_arrivals(seed=0)
    result = run(constant(1.0), constant(1.0), arrivals=arrivals, policy=policy, block_size=4)
    assert result.counters.generated_tokens == sum(a.output_len for a in arrivals)
    for arrival, times in zip(arrivals, result.sequences, strict=True):
        assert arrival.at_s < times.first_token_at <= times.ended_at <= result.makespan_s
        assert (times.first_token_at == times.ended_at) == (arrival.output_len == 1)


def test_online_requests_start_before_earlier_offline_ones() -> None:
    arrivals = [Arrival(0.0, 5, 1), Arrival(0.25, 5, 1), Arrival(0.5, 5, 1, offline=False)]
    result = run(constant(1.0), arrivals=arrivals, max_num_seqs=1)
    assert [times.first_token_at for times in result.sequences] == [1.75, 5.25, 3.5]
    assert [gauges.waiting for gauges in result.gauges] == [1, 0, 0]


def test_the_scheduler_gets_the_predicted_length_and_not_the_real_one() -> None:
    def sequences(predicted_len: int) -> list[SequenceTimes]:
        arrivals = [Arrival(0.0, 16, 2, predicted_len)] * 30
        return run(constant(1.0), arrivals=arrivals, policy="td-pipe").sequences

    assert sequences(200) != sequences(2)


def test_a_span_contains_the_phase_rows_and_tokens_of_its_step() -> None:
    arrivals = [Arrival(0.0, 5, 2), Arrival(0.0, 6, 3), Arrival(0.0, 7, 2)]
    result = run(constant(1.0), arrivals=arrivals)
    figures = [(span.phase, span.num_rows, span.num_tokens) for span in result.spans]
    assert figures == [("prefill", 1, 5), ("prefill", 2, 13), ("decode", 3, 3), ("decode", 1, 1)]


def test_a_run_without_a_record_is_otherwise_equal() -> None:
    recorded, bare = (
        run(constant(1.0), arrivals=mixed_arrivals(seed=0), record=record)
        for record in (True, False)
    )
    assert replace(recorded, spans=[], gauges=[]) == bare


def test_the_gauges_contain_the_blocks_and_the_sequences() -> None:
    result = run(constant(1.0), arrivals=[Arrival(0.0, 33, 3), Arrival(0.0, 33, 2)])
    figures = [(g.blocks_used, g.blocks_total, g.waiting, g.live) for g in result.gauges]
    # After the first prompt (the second is admitted at once), after the second, after each decode.
    assert figures == [(6, 100, 0, 2), (6, 100, 0, 2), (3, 100, 0, 1), (0, 100, 0, 0)]


def test_a_request_that_cannot_fit_ends_the_simulation_with_a_message() -> None:
    with pytest.raises(SimulationError, match="260 tokens exceed"):
        run(constant(1.0), arrivals=[Arrival(0.0, 250, 10)])
