"""Priority preemption: offline work that fills the engine does not block online requests."""

import msgspec
import pytest

from configs.config import EngineConfig
from tests.engine.world import World, make_submit
from wire.messages import Abort, Submit

POLICIES = ("td-pipe", "temporal", "hybrid", "separate")
LONG, SHORT = 400, 4
WAIT_S = 0.1
FIRST_ONLINE = 100


def offline(sequence_id: int, num_prompt: int = 3, max_tokens: int = LONG) -> Submit:
    """An offline request with a long answer, as predicted."""
    submit = make_submit(sequence_id, [sequence_id] * num_prompt, max_tokens, stop=False)
    return msgspec.structs.replace(submit, offline=True, predicted_len=max_tokens)


def online(sequence_id: int, num_prompt: int = 3) -> Submit:
    """An online request."""
    submit = make_submit(sequence_id, [sequence_id] * num_prompt, SHORT, stop=False)
    return msgspec.structs.replace(submit, predicted_len=SHORT)


def world_of(policy: str, num_blocks: int = 1000, **settings: object) -> World:
    """Two stages, blocks of four tokens."""
    return World(
        EngineConfig.of(
            **{
                "policy": policy,
                "pipeline_parallel_size": 2,
                "block_size": 4,
                "max_prefill_wait": WAIT_S,
                **settings,
            }
        ),
        num_blocks,
    )


def steps_until_ended(world: World, *sequence_ids: int) -> int:
    """The number of steps until all of these have ended."""
    count = 0
    while not all(sequence_id in world.finished for sequence_id in sequence_ids):
        assert world.return_step()
        count += 1
    return count


@pytest.mark.parametrize("policy", POLICIES)
def test_offline_sequences_are_preempted_at_the_limit_of_live_sequences(policy: str) -> None:
    world = world_of(policy, max_num_seqs=4)
    for sequence_id in range(6):
        world.submit(offline(sequence_id))
    for _ in range(20):
        world.return_step()
    for sequence_id in range(FIRST_ONLINE, FIRST_ONLINE + 3):
        world.submit(online(sequence_id))
    assert steps_until_ended(world, *range(FIRST_ONLINE, FIRST_ONLINE + 3)) < LONG / 4
    assert not any(sequence_id in world.finished for sequence_id in range(6))
    world.run_dry()
    world.check_ends()


@pytest.mark.parametrize("policy", POLICIES)
def test_offline_sequences_are_preempted_for_blocks(policy: str) -> None:
    world = world_of(policy, num_blocks=120)
    for sequence_id in range(8):
        world.submit(offline(sequence_id, num_prompt=40, max_tokens=60))
    for _ in range(10):
        world.return_step()
    assert world.scheduler.pool.ledger.num_free < 60
    world.submit(online(FIRST_ONLINE, num_prompt=240))
    ended = steps_until_ended(world, FIRST_ONLINE)
    assert ended < 60
    world.run_dry()
    world.check_ends()


@pytest.mark.parametrize("policy", ["td-pipe", "temporal"])  # the others do not plan KV
def test_planned_kv_of_offline_sequences_does_not_block_online_requests_for_long(
    policy: str,
) -> None:
    world = world_of(policy, num_blocks=110)
    # It fits with its whole answer, and leaves no blocks for another.
    world.submit(offline(0, num_prompt=200, max_tokens=230))
    for _ in range(10):
        world.return_step()
    world.submit(msgspec.structs.replace(online(FIRST_ONLINE), max_tokens=200, predicted_len=200))
    num_steps = 0
    while not world.outputs[FIRST_ONLINE]:
        assert world.return_step()
        num_steps += 1
    assert num_steps < 60
    world.run_dry()
    world.check_ends()


@pytest.mark.parametrize("policy", POLICIES)
def test_none_is_preempted_before_max_prefill_wait(policy: str) -> None:
    world = world_of(policy, max_num_seqs=2, max_prefill_wait=1000.0)
    for sequence_id in range(2):
        world.submit(offline(sequence_id))
    world.submit(online(FIRST_ONLINE))
    world.run_dry()
    assert world.scheduler.counters.preemptions == 0
    world.check_ends()


def test_online_sequences_are_not_preempted() -> None:
    world = world_of("td-pipe", max_num_seqs=2)
    for sequence_id in range(FIRST_ONLINE, FIRST_ONLINE + 4):
        world.submit(msgspec.structs.replace(online(sequence_id), max_tokens=LONG))
    world.run_dry()
    assert world.scheduler.counters.preemptions == 0
    world.check_ends()


@pytest.mark.parametrize("policy", POLICIES)
def test_events_between_steps_cause_no_preemptions(policy: str) -> None:
    world = world_of(policy, max_num_seqs=8)
    for sequence_id in range(8):
        world.submit(offline(sequence_id))
    for _ in range(20):
        world.return_step()
    world.submit(online(FIRST_ONLINE))
    for _ in range(10):
        for _ in range(100):
            world.hand(Abort(999))
        world.return_step()
    steps_until_ended(world, FIRST_ONLINE)
    assert world.scheduler.counters.preemptions in (1, 2)


def test_none_is_preempted_if_that_would_not_be_enough() -> None:
    world = world_of("td-pipe", num_blocks=100)
    world.submit(msgspec.structs.replace(online(FIRST_ONLINE, num_prompt=200), max_tokens=80))
    world.submit(offline(0, num_prompt=60, max_tokens=40))
    for _ in range(10):
        world.return_step()
    assert set(world.scheduler.pool.live) == {0, FIRST_ONLINE}
    world.submit(online(FIRST_ONLINE + 1, num_prompt=250))
    steps_until_ended(world, FIRST_ONLINE)
    assert world.scheduler.counters.preemptions == 0
    world.run_dry()
    world.check_ends()
