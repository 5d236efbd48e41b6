"""The profiler: what it measures, within its budget, on a fake stage."""

import time

import pytest
import torch

from engine.messages import StageCosts, Step
from workers import batch, profiler

CPU = torch.device("cpu")


class FakeStage:
    """Takes no time, remembers the steps."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.steps: list[Step] = []
        self._seconds = seconds

    def run(self, step: Step) -> None:
        self.steps.append(step)
        time.sleep(self._seconds)


def profile(stage: FakeStage, *, budget_s: float = 10.0, num_blocks: int = 1000) -> StageCosts:
    """Of a CPU stage with blocks of 16 and steps of up to 300 tokens."""
    return profiler.profile(
        stage.run,
        device=CPU,
        block_size=16,
        num_blocks=num_blocks,
        max_tokens=300,
        budget_s=budget_s,
    )


def test_sizes_up_to_the_largest_step_are_measured() -> None:
    costs = profile(FakeStage())
    assert costs.num_tokens == (1, 2, 4, 8, 16, 32, 64, 128, 256, 300)
    assert len(costs.seconds) == len(costs.num_tokens)
    assert list(costs.seconds) == sorted(costs.seconds)
    assert min(costs.seconds) > 0
    assert costs.kv_s_per_token >= 0


def test_without_a_budget_nothing_runs() -> None:
    stage = FakeStage()
    assert profile(stage, budget_s=0) == StageCosts()
    assert stage.steps == []


def test_when_time_is_up_larger_steps_are_left_out() -> None:
    costs = profile(FakeStage(seconds=0.01), budget_s=0.1)
    assert 1 <= len(costs.num_tokens) < 10


def test_a_cache_smaller_than_the_largest_step_bounds_what_is_measured() -> None:
    stage = FakeStage()
    assert profile(stage, num_blocks=4).num_tokens[-1] == 64
    blocks = {b for step in stage.steps for b in memoryview(step.block_tables).cast("i")}
    assert blocks <= set(range(4))


def test_a_stage_that_fails_is_not_measured_and_goes_on() -> None:
    def run(step: Step) -> None:
        raise RuntimeError(f"no memory for {len(step.samples)} rows")

    costs = profiler.profile(
        run, device=CPU, block_size=16, num_blocks=9, max_tokens=64, budget_s=1.0
    )
    assert costs == StageCosts()


@pytest.mark.parametrize("has_stairs", [True, False])
def test_both_sides_of_a_stair_are_measured_where_there_are_stairs(*, has_stairs: bool) -> None:
    sizes = profiler.sizes(1000, has_stairs=has_stairs)
    assert ({128, 129, 256, 257, 384, 385} <= set(sizes)) == has_stairs
    assert sizes[-1] == 1000
    assert sizes == sorted(set(sizes))


def test_the_steps_can_be_built_as_any_other() -> None:
    prefill = batch.build(profiler.prefill_step(600, 16), 16, CPU)
    assert prefill.num_tokens == 600
    assert [row.end - row.begin for row in prefill.rows] == [256, 256, 88]
    decode = batch.build(profiler.decode_step(3, 40, 16, 5), 16, CPU)
    assert decode.num_tokens == 3
    assert [len(row.read_slots) for row in decode.rows] == [41, 41, 41]
    assert int(torch.stack([row.read_slots for row in decode.rows]).max()) < 5 * 16
