"""The quarantine: suspects are fed one per step, cleared, or answered as poison requests."""

from configs.config import EngineConfig
from tests.engine.world import World, make_submit
from wire.messages import StageLost, Step

FOUR_STAGES = EngineConfig.of(pipeline_parallel_size=4)


def rows_of(step: Step) -> list[int]:
    """The sequence ids of the rows of a step."""
    return memoryview(step.sequence_ids).cast("q").tolist()


def running_world(num_sequences: int, config: EngineConfig = FOUR_STAGES) -> World:
    """A world of sequences that have generated a part of their output."""
    world = World(config, 200)
    for i in range(num_sequences):
        world.submit(make_submit(i, [1 + i], 40, stop=False))
    for _ in range(12):
        world.return_step()
    assert all(0 < len(output) < 40 for output in world.outputs.values())
    return world


def test_sequences_that_were_in_flight_are_fed_one_per_step_after_a_loss() -> None:
    world = running_world(6)
    in_flight = {i for step in world.in_flight for i in rows_of(step)}
    world.lose_pipeline()
    fed = [rows_of(step) for step in world.in_flight]
    assert all(len(rows) == 1 for rows in fed)
    assert {i for (i,) in fed} <= in_flight


def test_a_loss_without_a_cause_in_the_requests_ends_with_all_answered() -> None:
    world = running_world(6)
    world.lose_pipeline()
    world.run_dry()
    world.check_ends()
    assert {end.reason for end in world.finished.values()} == {"length"}


def test_a_suspect_is_cleared_by_its_next_token() -> None:
    """Any number of losses proves nothing, as long as the sequence makes progress in between."""
    world = World(EngineConfig.of(pipeline_parallel_size=1), 200)
    world.submit(make_submit(0, [1], 10, stop=False))
    for _ in range(8):
        world.return_step()
        world.hand(StageLost(world.epoch, "a stage died", world.in_flight[0].step_id))
        world.start_pipeline()
    world.run_dry()
    world.check_ends()
    assert world.finished[0].reason == "length"


def test_a_single_request_survives_two_kills_in_a_row() -> None:
    world = World(EngineConfig.of(pipeline_parallel_size=1), 200)
    world.submit(make_submit(0, [1], 10, stop=False))
    world.lose_pipeline()
    world.lose_pipeline()
    world.run_dry()
    assert world.finished[0].reason == "length"


def test_only_the_row_of_the_named_step_is_suspected() -> None:
    world = running_world(8)
    first, *others = world.in_flight
    world.hand(StageLost(world.epoch, "boom", first.step_id))
    world.start_pipeline()
    world.run_dry()
    later = [step for _, _, answer in world.events for step in answer if isinstance(step, Step)]
    fresh = [rows_of(step) for step in later if step.epoch == world.epoch]
    fed_first = fresh[: len(rows_of(first))]
    assert sorted(i for (i,) in fed_first) == sorted(rows_of(first))
    assert others
    world.check_ends()


def test_a_long_suspect_is_fed_in_chunks_by_itself() -> None:
    world = World(EngineConfig.of(pipeline_parallel_size=2, max_num_batched_tokens=8), 200)
    world.submit(make_submit(0, [1] * 20, 30, stop=False))
    world.submit(make_submit(1, [2] * 3, 30, stop=False))
    for _ in range(6):
        world.return_step()
    world.lose_pipeline()
    assert all(len(rows_of(step)) == 1 for step in world.in_flight)
    world.run_dry()
    world.check_ends()


def test_suspects_that_no_longer_fit_together_are_fed_one_after_the_other() -> None:
    world = World(EngineConfig.of(pipeline_parallel_size=2, block_size=4), 40)
    for i in range(4):
        world.submit(make_submit(i, [1 + i] * 12, 12, stop=False))
    for _ in range(10):
        world.return_step()
    world.num_blocks = 7
    world.lose_pipeline()
    world.run_dry()
    world.check_ends()
    assert {end.reason for end in world.finished.values()} == {"length"}


def test_an_aborted_suspect_is_not_fed() -> None:
    world = running_world(6)
    world.hand(StageLost(world.epoch, "a stage died"))
    for i in range(6):
        world.abort(i)
    world.start_pipeline()
    assert not world.in_flight
    world.submit(make_submit(9, [9], 4, stop=False))
    world.run_dry()
    assert len(world.outputs[9]) == 4
