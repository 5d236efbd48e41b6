"""Correction: learns from step times of the stages, and ignores outliers."""

import random
from array import array

import pytest

from configs.config import EngineConfig
from engine.costs.correction import MAX_FACTOR, Correction, StageCorrection
from engine.costs.cost_model import CostModel, StepSize
from tests.engine.world import World, make_submit
from wire.messages import StageCosts, StageTimes


def measured() -> CostModel:
    """1 s per step up to 64 tokens, then tokens / 64 seconds."""
    return CostModel([1, 64, 4096], [1.0, 1.0, 64.0], 0.01)


def learn(correction: StageCorrection, factors: dict[int, float], steps: int = 40) -> None:
    """Steps of each size that take the factor times the measured seconds; a few take far more."""
    rng = random.Random(1)
    for _ in range(steps):
        for num_tokens, factor in factors.items():
            size = StepSize(num_tokens, kv_tokens=10)
            noise = rng.choice([0.98, 1.0, 1.0, 1.02, 30.0])
            correction.observe(size, noise * factor * measured().step_s(size))


def test_each_size_is_corrected_by_its_own_steps() -> None:
    correction = StageCorrection(measured())
    learn(correction, {16: 2.0, 1024: 0.5})
    assert correction.update()
    assert correction.model.linear_s(16) == pytest.approx(2.0, rel=0.03)
    assert correction.model.linear_s(1024) == pytest.approx(8.0, rel=0.03)
    # Sizes without steps take the factors of their neighbours.
    assert correction.model.linear_s(1) == pytest.approx(2.0, rel=0.03)
    assert 8.0 < correction.model.linear_s(1024) * 2 <= 2 * correction.model.linear_s(2048)


def test_a_few_steps_change_nothing() -> None:
    correction = StageCorrection(measured())
    learn(correction, {16: 3.0}, steps=7)
    assert not correction.update()
    assert correction.model.linear_s(16) == 1.0


def test_factors_are_clipped_to_the_bound() -> None:
    correction = StageCorrection(measured())
    learn(correction, {16: 100.0, 1024: 0.001})
    assert correction.update()
    assert correction.model.linear_s(16) == pytest.approx(MAX_FACTOR)
    assert correction.model.linear_s(1024) == pytest.approx(16 / MAX_FACTOR)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_invalid_times_are_ignored(seconds: float) -> None:
    correction = StageCorrection(measured())
    correction.observe(StepSize(16), seconds)
    assert correction.ratio == 0.0


def test_small_changes_do_not_change_the_model() -> None:
    correction = StageCorrection(measured())
    learn(correction, {16: 1.03})
    before = correction.model
    assert not correction.update()
    assert correction.model is before


def test_the_ratio_is_predicted_over_real_and_approaches_one() -> None:
    correction = StageCorrection(measured())
    size = StepSize(16)
    for _ in range(100):
        correction.observe(size, 2.0)
    assert correction.ratio == pytest.approx(0.5)
    correction.update()
    for _ in range(300):
        correction.observe(size, 2.0)
    assert correction.ratio == pytest.approx(1.0)


def test_the_model_of_the_policies_follows_the_slowest_stage() -> None:
    correction = Correction({0: measured(), 1: measured()})
    cost = correction.cost
    for step_id in range(100):
        correction.launch(step_id, StepSize(16))
    correction.observe(1, range(100), [3.0] * 100, now=0.0)
    assert cost.linear_s(16) == pytest.approx(3.0)
    assert correction.ratios() == {0: 0.0, 1: pytest.approx(1 / 3)}


def test_unknown_steps_and_stages_are_ignored() -> None:
    correction = Correction({0: measured()})
    correction.observe(0, [1, 2], [1.0, 1.0], now=0.0)
    correction.observe(7, [1, 2], [1.0, 1.0], now=0.0)
    assert correction.ratios() == {0: 0.0}


def test_the_scheduler_learns_from_the_times_of_its_stages() -> None:
    costs = StageCosts((1, 64), (1.0, 1.0))
    world = World(EngineConfig.of(pipeline_parallel_size=1), 100, costs)
    world.submit(make_submit(0, [1, 2, 3], 100, stop=False))
    world.run_dry()
    pipeline = world.scheduler.pipeline
    assert pipeline is not None
    step_ids, seconds = array("q", range(100)), array("d", [2.0] * 100)
    columns = step_ids.tobytes(), seconds.tobytes()
    world.hand(StageTimes(0, world.epoch - 1, *columns))  # of an epoch that is over
    assert pipeline.correction.ratios() == {0: 0.0}
    world.hand(StageTimes(0, world.epoch, *columns))
    assert pipeline.correction.ratios() == {0: pytest.approx(0.5)}
    assert pipeline.correction.cost.linear_s(1) == pytest.approx(2.0)


def test_with_virtual_stages_a_step_takes_the_sum_of_its_slices() -> None:
    correction = Correction({0: measured(), 1: measured()}, num_slices=2)

    def observe(stage: int, step_id: int, seconds: float) -> None:
        ids, times = array("q", [step_id]), array("d", [seconds])
        correction.observe(stage, memoryview(ids), memoryview(times), 0.0)

    for step_id in range(10):
        correction.launch(step_id, StepSize(16))
        observe(0, step_id, 0.5)
        observe(1, step_id, 0.5)
    assert correction.ratios() == {0: 0.0, 1: 0.0}
    for step_id in range(10):
        observe(0, step_id, 1.5)
        observe(1, step_id, 0.5)
    assert correction.ratios() == {0: pytest.approx(0.5), 1: pytest.approx(1.0)}
