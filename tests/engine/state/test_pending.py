"""Asynchronous scheduling: steps with tokens that the engine does not know yet."""

from array import array

import pytest

from configs.config import EngineConfig
from tests.engine.world import World, make_submit
from wire.messages import Step

# Under policy separate, a virtual engine has one micro-batch in flight: it never looks ahead.
POLICIES = ["td-pipe", "temporal", "hybrid"]


def steps_of(world: World) -> list[Step]:
    return [m for _, _, answer in world.events for m in answer if isinstance(m, Step)]


def make_world(policy: str, num_stages: int, num_blocks: int = 1000) -> World:
    config = EngineConfig.of(
        policy=policy, pipeline_parallel_size=num_stages, block_size=4, async_scheduling=True
    )
    return World(config, num_blocks)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_one_step_more_than_stages_is_in_flight_and_follows_the_oldest(
    policy: str, num_stages: int
) -> None:
    world = make_world(policy, num_stages)
    for i in range(12):
        world.submit(make_submit(i, [1 + i, 2, 3], 30, stop=False))
    for _ in range(20):
        world.return_step()
    assert len(world.in_flight) == num_stages + 1
    oldest, newest = world.in_flight[0], world.in_flight[-1]
    assert newest.follows == oldest.step_id
    assert min(array("i", newest.token_ids)) < 0
    world.run_dry()
    world.check_ends()
    # Nobody ends by a stop token, so no row is fed in vain.
    assert sum(len(step.token_ids) // 4 for step in steps_of(world)) == 12 * (3 + 29)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_stop_token_costs_at_most_a_row(policy: str) -> None:
    world = make_world(policy, 3)
    for i in range(40):
        world.submit(make_submit(i, [1 + i, 2, 3], 400))
    world.run_dry()
    world.check_ends()
    needed = sum(3 + len(output) - 1 for output in world.outputs.values())
    fed = sum(len(step.token_ids) // 4 for step in steps_of(world))
    assert needed < fed <= needed + 40


@pytest.mark.parametrize("policy", POLICIES)
def test_pending_tokens_are_lost_with_the_stages_and_sampled_again(policy: str) -> None:
    world = make_world(policy, 2)
    for i in range(8):
        world.submit(make_submit(i, [1 + i, 2, 3], 30, stop=False))
    for _ in range(9):
        world.return_step()
    assert any(sequence.is_pending for sequence in world.scheduler.pool.live.values())
    world.lose_pipeline()
    assert not any(sequence.is_pending for sequence in world.scheduler.pool.open_sequences())
    world.abort(3)
    world.run_dry()
    world.check_ends()


def test_without_the_setting_every_token_is_known() -> None:
    world = World(EngineConfig.of(pipeline_parallel_size=2), 1000)
    world.submit(make_submit(0, [1, 2, 3], 30, stop=False))
    world.run_dry()
    assert {step.follows for step in steps_of(world)} == {-1}
