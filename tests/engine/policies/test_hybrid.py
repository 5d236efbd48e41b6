"""Policy hybrid: decodes and chunks of prompts in one step, sized as in vLLM and gLLM."""

import pytest

from configs.config import EngineConfig
from engine.policies.hybrid import Hybrid
from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from tests.engine.pools import make_pool, make_ready, make_sequence
from tests.engine.steps import row_tokens, rows_of, steps_of
from tests.engine.world import World, make_submit

SETTINGS = pytest.mark.parametrize("setting", ["vllm", "throttled"])
THROTTLE = {
    "throttle_iterations": 4,
    "throttle_min_tokens": 8,
    "throttle_max_tokens": 100,
    "throttle_kv_free": 0.2,
}


def make_config(setting: str, num_stages: int, budget: int) -> EngineConfig:
    return EngineConfig.of(
        **{
            "policy": "hybrid",
            "hybrid": setting,
            "pipeline_parallel_size": num_stages,
            "max_num_batched_tokens": budget,
            "block_size": 10,
            "enable_prefix_caching": False,
            **THROTTLE,
        }
    )


def make_world(setting: str, num_stages: int, budget: int = 1000) -> World:
    return World(make_config(setting, num_stages, budget), num_blocks=100)


def submit(world: World, count: int, num_prompt_tokens: int, max_tokens: int = 20) -> None:
    """Submit requests that end only with their last token, with the next free ids."""
    for _ in range(count):
        prompt = [1] * num_prompt_tokens
        world.submit(make_submit(len(world.submits), prompt, max_tokens, stop=False))


def ready_pool(count: int) -> Pool:
    """A pool with idle decodes, and blocks for more."""
    pool = make_pool(num_blocks=1000)
    for i in range(count):
        make_ready(pool, make_sequence(i))
    return pool


def launch(policy: Hybrid, pool: Pool) -> MicroBatch:
    """Launch the next micro-batch, which must exist."""
    batch = policy.next_micro_batch(pool, 0.0)
    assert batch is not None
    pool.launch(batch.sequences, batch.num_tokens)
    return batch


def test_vllm_puts_all_idle_decodes_and_the_waiting_prompts_into_one_micro_batch() -> None:
    world = make_world("vllm", num_stages=2)
    submit(world, 5, num_prompt_tokens=3)
    for _ in range(3):
        world.return_step()
    assert [(step.phase, rows_of(step)) for step in steps_of(world)] == [
        ("prefill", [(0, 3)]),
        ("prefill", [(1, 3)]),
        ("mixed", [(0, 1), (2, 3), (3, 3), (4, 3)]),
        ("decode", [(1, 1)]),
        ("decode", [(0, 1), (2, 1), (3, 1), (4, 1)]),
    ]
    counters = world.scheduler.counters
    assert (counters.topups, counters.topup_tokens) == (1, 9)


def test_throttled_spreads_the_decodes_of_all_live_sequences_over_the_stages() -> None:
    pool = ready_pool(10)
    policy = Hybrid(make_config("throttled", num_stages=4, budget=1000).scheduler, 4)
    sizes = [launch(policy, pool).num_decodes for _ in range(4)]
    assert sizes == [3, 3, 3, 1]
    assert not pool.ready


def test_a_throttled_share_counts_all_live_sequences_not_only_idle_ones() -> None:
    pool = ready_pool(10)
    pool.launch(list(pool.ready.values())[:5], [1] * 5)
    policy = Hybrid(make_config("throttled", num_stages=4, budget=1000).scheduler, 4)
    assert [launch(policy, pool).num_decodes for _ in range(2)] == [3, 2]


@SETTINGS
def test_no_step_has_more_tokens_than_the_budget(setting: str) -> None:
    world = make_world(setting, num_stages=3, budget=8)
    submit(world, 15, num_prompt_tokens=13)
    world.run_dry()
    sizes = [sum(row_tokens(step)) for step in steps_of(world)]
    assert max(sizes) == 8
    world.check_ends()


def test_vllm_fills_every_step_to_the_budget_while_prompts_wait() -> None:
    world = make_world("vllm", num_stages=2, budget=16)
    submit(world, 8, num_prompt_tokens=40)
    world.run_dry()
    steps = steps_of(world)
    last_prefill = max(i for i, step in enumerate(steps) if step.phase != "decode")
    assert last_prefill > 8 * 40 // 16
    # A token less where a single one would have been left over.
    assert {sum(row_tokens(step)) for step in steps[:last_prefill]} <= {15, 16}


def test_more_idle_decodes_than_the_budget_go_in_several_steps() -> None:
    pool = ready_pool(12)
    policy = Hybrid(make_config("vllm", num_stages=2, budget=5).scheduler, 2)
    assert [launch(policy, pool).num_decodes for _ in range(3)] == [5, 5, 2]
    assert policy.next_micro_batch(pool, 0.0) is None


@pytest.mark.parametrize(("setting", "chunks"), [("vllm", [10, 10, 5]), ("throttled", [8, 8, 7])])
def test_chunks_of_one_prompt_are_launched_without_waiting(setting: str, chunks: list[int]) -> None:
    world = make_world(setting, num_stages=3, budget=10)
    submit(world, 1, num_prompt_tokens=25)
    in_flight = list(world.in_flight)
    assert [rows_of(step) for step in in_flight] == [[(0, chunk)] for chunk in chunks]
    starts = [memoryview(step.start_positions).cast("i")[0] for step in in_flight]
    assert starts == [0, chunks[0], chunks[0] + chunks[1]]
    assert [step.samples[0] for step in in_flight] == [0, 0, sum(chunks) == 25]


def test_a_long_prompt_is_fed_more_slowly_as_free_kv_and_rest_shrink() -> None:
    world = make_world("throttled", num_stages=1)
    submit(world, 1, num_prompt_tokens=390)
    world.run_dry()
    fed = [row_tokens(step)[0] for step in steps_of(world) if step.phase == "prefill"]
    # First all KV is free: 390 / 4 tokens. Then 61 of 100 blocks are free, which allows
    # 100 x (0.61 - 0.2) / 0.8 = 51, until a quarter of the rest is less; at the end the minimum, 8.
    assert fed == [97, 51, 51, 47, 36, 27, 20, 15, 11, 8, 8, 8, 8, 3]


@pytest.mark.parametrize(
    ("num_waiting", "blocks_used", "num_tokens"),
    [
        (120, 50, 30),  # a quarter of the waiting tokens
        (160, 50, 37),  # 100 x (0.5 - 0.2) / 0.8 = 37.5
        (160, 65, 18),  # 100 x (0.35 - 0.2) / 0.8 = 18.75
        (160, 75, 8),  # 6.25 would be less than the minimum
        (100, 90, 8),  # less is free than the reserve
        (20, 50, 8),  # a quarter would be less than the minimum
        (1000, 0, 100),  # an empty cache: the maximum
    ],
)
def test_throttled_prompt_tokens_are_those_of_the_formula(
    num_waiting: int, blocks_used: int, num_tokens: int
) -> None:
    pool = make_pool(num_blocks=100)
    if blocks_used:  # its newest token has a slot
        make_ready(pool, make_sequence(0, blocks_used * pool.ledger.block_size - 1))
    for i in range(num_waiting // 10):
        pool.add(make_sequence(1 + i, 10))
    batch = launch(Hybrid(make_config("throttled", 1, budget=1000).scheduler, 1), pool)
    assert batch.total_tokens - batch.num_decodes == num_tokens


def test_throttled_prompts_are_limited_by_the_budget_without_the_decodes() -> None:
    pool = ready_pool(6)
    for i in range(40):
        pool.add(make_sequence(6 + i, 10))
    batch = launch(Hybrid(make_config("throttled", 1, budget=20).scheduler, 1), pool)
    assert (batch.num_decodes, batch.total_tokens) == (6, 20)


def test_no_more_sequences_are_admitted_than_may_hold_kv() -> None:
    pool = make_pool(num_blocks=1000)
    for i in range(9):
        pool.add(make_sequence(i, 10))
    config = make_config("vllm", 1, 1000).scheduler.replaced(max_num_seqs=4)
    batch = launch(Hybrid(config, 1), pool)
    assert [sequence.sequence_id for sequence in batch.sequences] == [0, 1, 2, 3]
