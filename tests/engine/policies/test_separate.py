"""Policy separate: S virtual engines, each prefill first, each with its own sequences."""

import pytest

from configs.config import EngineConfig
from tests.engine.steps import row_ids, rows_of, steps_of
from tests.engine.world import World, make_submit

# Tokens of a prompt: those of a prefill micro-batch, so that each prompt has its own.
BUDGET = 8


def make_world(num_stages: int, num_blocks: int = 1000, *, max_num_seqs: int = 1000) -> World:
    config = EngineConfig.of(
        policy="separate",
        pipeline_parallel_size=num_stages,
        max_num_batched_tokens=BUDGET,
        max_num_seqs=max_num_seqs,
        block_size=1,
        enable_prefix_caching=False,
    )
    return World(config, num_blocks)


def submit(world: World, *num_prompt_tokens: int, max_tokens: int = 10) -> None:
    """Submit requests that end only with their last token, with the next free ids."""
    for num_tokens in num_prompt_tokens:
        world.submit(make_submit(len(world.submits), [1] * num_tokens, max_tokens, stop=False))


def launches(world: World) -> list[tuple[str, list[int]]]:
    """Phase and sequences of every step so far."""
    return [(step.phase, row_ids(step)) for step in steps_of(world)]


def decode_micro_batches(world: World) -> list[set[int]]:
    """The distinct decode micro-batches."""
    return [set(ids) for ids in {tuple(sorted(i)) for p, i in launches(world) if p == "decode"}]


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_each_virtual_engine_has_one_micro_batch_in_flight(num_stages: int) -> None:
    world = make_world(num_stages)
    submit(world, *[BUDGET] * 6)
    assert launches(world) == [("prefill", [i]) for i in range(num_stages)]
    while world.return_step():
        assert len(world.in_flight) <= num_stages
    world.check_ends()


def test_a_virtual_engine_prefills_before_it_decodes() -> None:
    world = make_world(2)
    submit(world, *[BUDGET] * 4)
    for _ in range(4):
        world.return_step()
    assert launches(world) == [
        ("prefill", [0]),
        ("prefill", [1]),
        ("prefill", [2]),  # 0 is ready in this engine, and waits for it
        ("prefill", [3]),
        ("decode", [0, 2]),
        ("decode", [1, 3]),
    ]
    assert world.scheduler.counters.switches == 1


def test_one_virtual_engine_prefills_while_the_other_decodes() -> None:
    world = make_world(2)
    submit(world, *[BUDGET] * 2)
    world.return_step()
    world.return_step()
    submit(world, BUDGET)
    del world.events[:]
    for _ in range(3):
        world.return_step()
    assert launches(world) == [("prefill", [2]), ("decode", [1]), ("decode", [0, 2])]


def test_short_prompts_go_to_the_virtual_engine_with_the_fewest_sequences() -> None:
    world = make_world(4)
    submit(world, *[1] * 20)
    world.run_dry()
    assert sorted(len(ids) for phase, ids in launches(world)[4:8]) == [4] * 4
    assert sorted(map(len, decode_micro_batches(world)))[-4:] == [5] * 4


def test_the_prompts_are_spread_over_all_virtual_engines() -> None:
    world = make_world(3)
    submit(world, *[BUDGET] * 12, max_tokens=30)
    world.run_dry()
    whole = [members for members in decode_micro_batches(world) if len(members) > 1]
    assert sorted(map(sorted, whole)) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_requests_that_arrive_one_by_one_go_to_the_virtual_engines_in_turn() -> None:
    world, engines = make_world(3), []
    for i in range(6):
        submit(world, BUDGET, max_tokens=2)
        engines.append(world.scheduler.pool.live[i].micro_batch_index)
        world.run_dry()
    assert engines in ([0, 1, 2, 0, 1, 2], [0, 2, 1, 0, 2, 1])


def test_an_idle_virtual_engine_does_not_take_sequences_of_the_others() -> None:
    world = make_world(2)
    submit(world, BUDGET)
    submit(world, BUDGET, max_tokens=1)
    submit(world, BUDGET)
    world.return_step()
    world.return_step()
    # 1 has ended, 2 is in flight in the first engine, where 0 is ready and waits for it.
    assert [row_ids(step) for step in world.in_flight] == [[2]]


def test_a_sequence_decodes_only_with_sequences_of_its_own_engine() -> None:
    # Unequal prompt and output lengths: members end and others are added in between.
    world = make_world(3)
    for i in range(20):
        submit(world, 1 + i % BUDGET, max_tokens=12 + i * 7 % 11)
        world.return_step()
    world.run_dry()
    engines: list[set[int]] = []
    for members in decode_micro_batches(world):
        met = [engine for engine in engines if engine & members]
        engines = [engine for engine in engines if not engine & members]
        engines.append(members.union(*met))
    assert len(engines) == 3
    assert sorted(sequence_id for engine in engines for sequence_id in engine) == list(range(20))


def test_whole_prompts_share_a_micro_batch_up_to_the_budget() -> None:
    world = make_world(1)
    submit(world, BUDGET, 5, 3, 1)
    world.return_step()
    world.return_step()
    prefills = [rows_of(step) for step in steps_of(world)]
    assert prefills == [[(0, BUDGET)], [(1, 5), (2, 3)], [(3, 1)]]


def test_a_prompt_longer_than_the_budget_begins_a_micro_batch_and_is_fed_in_chunks() -> None:
    world = make_world(1)
    submit(world, BUDGET, 2, 2 * BUDGET + 3, BUDGET - 3, 1)
    for _ in range(5):
        world.return_step()
    assert [rows_of(step) for step in steps_of(world)][1:5] == [
        [(1, 2)],  # the long one would fit in part, and does not begin here
        [(2, BUDGET)],
        [(2, BUDGET)],
        [(2, 3), (3, BUDGET - 3)],
    ]


def test_no_more_sequences_are_admitted_than_may_hold_kv() -> None:
    world = make_world(2, max_num_seqs=3)
    submit(world, *[BUDGET] * 8, max_tokens=4)
    num_live = [world.scheduler.pool.num_live]
    while world.return_step():
        num_live.append(world.scheduler.pool.num_live)
    assert max(num_live) == 3
    world.check_ends()
