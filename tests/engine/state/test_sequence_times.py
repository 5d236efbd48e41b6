"""Sequence times: the parts of a sequence's life, at known times, through the real scheduler."""

from array import array

import pytest
from msgspec.structs import replace

from configs.config import EngineConfig
from engine.state.sequence_times import SequenceTimes
from tests.engine.world import World, make_submit


def make_world(**settings: object) -> World:
    """A world in which each event takes place 0.01 s after the one before it."""
    return World(EngineConfig.of(**{"pipeline_parallel_size": 1, "block_size": 4, **settings}), 40)


def parts(times: SequenceTimes) -> list[tuple[int, float]]:
    """The number and the sum of the waiting, prefill and decode times."""
    figures = [each.figures() for each in (times.queue, times.prefill, times.decode)]
    return [(sum(each.counts), pytest.approx(each.total)) for each in figures]


def test_each_part_of_a_sequence_lasts_as_long_as_its_events_say() -> None:
    world = make_world(policy="hybrid")
    world.submit(make_submit(1, [5, 6, 7], 3, stop=False))
    world.submit(make_submit(2, [5, 6], 2, stop=False))  # waits until the first step returns
    world.now += 1.0
    world.run_dry()
    # Submitted at 0.02 and 0.03. At 1.04 the first has its first token, and the second is fed; it
    # has its first token at 1.05. Both end at 1.06.
    assert parts(world.scheduler.times) == [(2, 1.01), (2, 1.03), (2, 0.03)]


def test_an_aborted_sequence_counts_in_the_parts_that_it_has_completed() -> None:
    world = make_world()
    world.submit(make_submit(1, [5, 6, 7], 30, stop=False))
    world.abort(1)  # in flight: it was fed, and gets no token
    assert parts(world.scheduler.times) == [(1, 0.0), (0, 0.0), (0, 0.0)]
    world.run_dry()
    world.submit(make_submit(2, [5, 6], 30, stop=False))
    world.return_step()
    world.now += 2.0
    world.abort(2)
    assert parts(world.scheduler.times) == [(2, 0.0), (1, 0.01), (1, 2.01)]


def test_a_sequence_that_another_engine_began_is_left_out() -> None:
    world = make_world()
    submit = make_submit(1, [5, 6, 7], 30, stop=False)
    world.submit(replace(submit, output_token_ids=array("i", [8]).tobytes()))
    world.run_dry()
    assert parts(world.scheduler.times) == [(0, 0.0)] * 3


def test_a_loss_of_the_stages_is_part_of_the_time_in_which_it_happens() -> None:
    world = make_world()
    world.submit(make_submit(1, [5, 6, 7], 2, stop=False))
    world.return_step()
    world.now += 5.0
    world.lose_pipeline()
    world.run_dry()
    assert [count for count, _ in parts(world.scheduler.times)] == [1, 1, 1]
    assert world.scheduler.times.decode.figures().total > 5.0


def test_a_prompt_in_chunks_prefills_until_its_last_one() -> None:
    world = make_world(max_num_batched_tokens=2, max_num_seqs=2)
    world.submit(make_submit(1, [5, 6, 7, 8, 9], 1, stop=False))
    world.run_dry()
    queue, prefill, decode = parts(world.scheduler.times)
    assert (queue, decode) == ((1, 0.0), (1, 0.0))
    assert prefill[0] == 1
    assert prefill[1] != 0.01
