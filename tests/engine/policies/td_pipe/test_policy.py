"""Policy td-pipe: the phases, the balance of decode micro-batches, preemption."""

from typing import Any

from configs.config import EngineConfig
from tests.engine.world import World, expected_output, make_submit
from wire.messages import Finished, Step


def config_of(**settings: Any) -> EngineConfig:
    """A configuration with policy td-pipe."""
    return EngineConfig.of(policy="td-pipe", **settings)


def phases(world: World) -> list[str]:
    """The phase of every step launched so far."""
    return [m.phase for _, _, answer in world.events for m in answer if isinstance(m, Step)]


def rows(step: Step) -> int:
    """The number of rows of a step."""
    return len(step.samples)


def test_all_waiting_prompts_are_prefilled_before_the_first_decode() -> None:
    world = World(config_of(max_num_batched_tokens=16, prefill_ahead=1), 1000)
    for i in range(12):
        world.submit(make_submit(i, [1 + i] * 8, 10, stop=False))
    world.run_dry()
    order = phases(world)
    first_decode = order.index("decode")
    assert first_decode == 7  # the first prompt by itself, the others in pairs, the last by itself
    assert set(order[first_decode:]) == {"decode"}


def test_decode_micro_batches_are_balanced_over_the_stages() -> None:
    world = World(config_of(pipeline_parallel_size=4, max_num_batched_tokens=8), 1000)
    for i in range(30):
        world.submit(make_submit(i, [1 + i], 30, stop=False))
    world.run_dry()
    decodes = [
        rows(m)
        for _, _, answer in world.events
        for m in answer
        if isinstance(m, Step) and m.phase == "decode"
    ]
    steady = decodes[4:-8]
    assert len(steady) > 80
    assert set(steady) <= {6, 7, 8}
    assert {sum(steady[i : i + 4]) for i in range(len(steady) - 4)} == {30}


def test_a_phase_ends_when_the_finish_ratio_is_reached() -> None:
    config = config_of(max_num_seqs=4, intensity=False, finish_ratio=0.5, max_prefill_wait=1000.0)
    world = World(config, 1000)
    for i, max_tokens in enumerate([2, 4, 20, 20, 20]):
        world.submit(make_submit(i, [1 + i], max_tokens, stop=False))
    while 1 not in world.finished:
        assert phases(world).count("prefill") <= 4
        world.return_step()
    world.run_dry()
    assert "prefill" in phases(world)[-40:]
    world.check_ends()


def test_an_online_request_waits_for_the_finish_ratio_no_longer_than_the_bound() -> None:
    config = config_of(intensity=False, finish_ratio=1.0, max_prefill_wait=0.2)
    world = World(config, 1000)
    world.submit(make_submit(0, [1], 500, stop=False))
    world.return_step()
    asked_at = world.now
    world.submit(make_submit(1, [2], 5, stop=False))
    while not world.outputs[1]:
        world.return_step()
    assert world.now - asked_at < 0.3


def test_preemption_by_recomputation_loses_no_token() -> None:
    config = config_of(block_size=1, predicted_output_len=1, kv_occupancy=1.0)
    world = World(config, 40)
    for i in range(6):
        world.submit(make_submit(i, [1 + i] * 3, 30, stop=False))
    world.run_dry()
    assert world.scheduler.counters.preemptions > 0
    assert world.scheduler.counters.recomputed_tokens > 0
    world.check_ends()


def test_the_oldest_sequence_is_never_preempted() -> None:
    config = config_of(block_size=1, predicted_output_len=1, kv_occupancy=1.0)
    world = World(config, 40)
    for i in range(6):
        world.submit(make_submit(i, [1 + i] * 3, 30, stop=False))
    world.run_dry()
    ends = [
        m.sequence_id for _, _, answer in world.events for m in answer if isinstance(m, Finished)
    ]
    assert ends[0] == 0
    prefills = [
        memoryview(m.sequence_ids).cast("q").tolist()
        for _, _, answer in world.events
        for m in answer
        if isinstance(m, Step) and m.phase == "prefill"
    ]
    assert sum(0 in ids for ids in prefills) == 1


def test_the_chunks_of_a_long_prompt_depend_only_on_its_length() -> None:
    by_itself = World(config_of(max_num_batched_tokens=10), 100)
    by_itself.submit(make_submit(0, list(range(1, 26)), 3, stop=False))
    by_itself.run_dry()
    in_batch = World(config_of(max_num_batched_tokens=10), 100)
    for i in range(1, 4):
        in_batch.submit(make_submit(i, [5] * 7, 3, stop=False))
    in_batch.submit(make_submit(0, list(range(1, 26)), 3, stop=False))
    in_batch.run_dry()
    assert chunks_of(by_itself, 0) == chunks_of(in_batch, 0) == [10, 10, 5]


def test_no_chunk_of_a_long_prompt_is_a_single_token() -> None:
    world = World(config_of(max_num_batched_tokens=10), 100)
    world.submit(make_submit(0, list(range(1, 32)), 3, stop=False))
    world.run_dry()
    assert chunks_of(world, 0) == [10, 10, 9, 2]


def chunks_of(world: World, sequence_id: int) -> list[int]:
    """Lengths of the sequence's rows in prefill steps."""
    lengths = []
    for _, _, answer in world.events:
        for message in answer:
            if isinstance(message, Step) and message.phase == "prefill":
                ids = memoryview(message.sequence_ids).cast("q").tolist()
                if sequence_id in ids:
                    counts = memoryview(message.num_tokens).cast("i").tolist()
                    lengths.append(counts[ids.index(sequence_id)])
    return lengths


def test_an_abort_between_two_chunks_admits_the_next_prompt() -> None:
    world = World(config_of(max_num_batched_tokens=4, pipeline_parallel_size=1), 100)
    world.submit(make_submit(0, [3] * 20, 3))
    world.submit(make_submit(1, [4] * 3, 3))
    world.abort(0)
    world.run_dry()
    world.check_ends()
    assert world.outputs[1] == expected_output(world.submits[1])


def test_prompts_that_end_at_their_first_token_keep_sharing_micro_batches() -> None:
    world = World(EngineConfig(), 1000)

    def steps_of_wave(wave: int) -> int:
        before = len(phases(world))
        for i in range(16):
            world.submit(make_submit(wave * 16 + i, [wave, i] * 50, 1, stop=False))
        world.run_dry()
        return len(phases(world)) - before

    assert len({steps_of_wave(wave) for wave in range(60)}) == 1
