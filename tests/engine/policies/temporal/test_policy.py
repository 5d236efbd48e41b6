"""Policy temporal: refills do not stop decoding, and when they begin."""

import random
from itertools import pairwise
from statistics import mode
from typing import Any

from msgspec.structs import replace

from configs.config import EngineConfig
from simulator.arrival import Arrival
from simulator.pipeline import Node
from simulator.simulation import Run, simulate
from tests.engine.steps import row_ids, row_tokens, steps_of
from tests.engine.world import World, make_submit
from wire.messages import StageCosts

# Stairs at 64, 128, 256; beyond 256 tokens a token gets no cheaper: the knee.
STAIRS = StageCosts(
    (1, 64, 65, 128, 129, 256, 257, 1024), (1.0, 1.0, 1.2, 1.2, 1.6, 1.6, 1.8, 7.0), 1e-5
)
KNEE = 256


def make_world(num_blocks: int = 10_000, num_stages: int = 2, **settings: Any) -> World:
    config = {"policy": "temporal", "pipeline_parallel_size": num_stages, **settings}
    return World(EngineConfig.of(**config), num_blocks, STAIRS)


def submit(
    world: World, count: int, num_prompt_tokens: int, max_tokens: int, *, offline: bool
) -> None:
    """Requests with exactly the predicted lengths."""
    for _ in range(count):
        sequence_id = len(world.submits)
        plain = make_submit(sequence_id, [sequence_id] * num_prompt_tokens, max_tokens, stop=False)
        world.submit(replace(plain, predicted_len=max_tokens, offline=offline))


def run(arrivals: list[Arrival], kv_tokens: int, **settings: Any) -> Run:
    config = {"policy": "temporal", "pipeline_parallel_size": 4, **settings}
    quarters = tuple(0.001 * s / 4 for s in STAIRS.seconds)  # STAIRS taken as ms of a whole forward
    node = Node((StageCosts(STAIRS.num_tokens, quarters, 1e-8),) * 4, kv_tokens // 16, 2048)
    return simulate(EngineConfig.of(**config), node, arrivals, record=True)


def poisson(count: int, rate: float, *, offline: bool = False) -> list[Arrival]:
    """Requests of all lengths, `rate` per second."""
    draw, at_s, arrivals = random.Random(0), 0.0, []
    for _ in range(count):
        at_s += draw.expovariate(rate)
        output_len = 1 + int(draw.expovariate(1 / 60))
        arrivals.append(
            Arrival(at_s, 1 + int(draw.expovariate(1 / 100)), output_len, output_len, offline)
        )
    return arrivals


def test_decoding_continues_in_a_refill_whose_steps_all_end_at_the_knee() -> None:
    world = make_world()
    submit(world, 200, num_prompt_tokens=30, max_tokens=40, offline=False)
    for _ in range(20):
        world.return_step()
    mixed = [step for step in steps_of(world) if step.phase == "mixed"]
    assert len(mixed) > 10
    # A token less where a single one would have been left over.
    assert {sum(row_tokens(step)) for step in mixed} <= {KNEE - 1, KNEE}


def test_without_top_up_decoding_stops_for_a_refill() -> None:
    world = make_world(topup=False)
    submit(world, 200, num_prompt_tokens=30, max_tokens=40, offline=False)
    world.run_dry()
    phases = [step.phase for step in steps_of(world)]
    assert set(phases) == {"prefill", "decode"}


def test_decoding_pauses_if_offline_work_ends_sooner_but_never_for_online_requests() -> None:
    def begins_with(*, offline: bool) -> set[str]:
        # A few rows are expensive: all together they cost least.
        world = make_world()
        submit(world, 200, num_prompt_tokens=30, max_tokens=40, offline=offline)
        while len(world.scheduler.pool.waiting) > 0:
            world.return_step()
        return {step.phase for step in steps_of(world)[4:]}

    assert begins_with(offline=True) == {"prefill"}
    assert "mixed" in begins_with(offline=False)


def test_refills_are_smaller_than_the_knee_if_a_long_answer_needs_short_turns() -> None:
    # A token costs 10.0 us in steps of 256, the knee, and 10.9 us in steps of 128.
    tokens = (1, 64, 65, 128, 129, 256, 257, 1024)
    costs = StageCosts(tokens, (1e-3, 1e-3, 1.4e-3, 1.4e-3, 2.55e-3, 2.55e-3, 2.8e-3, 10.2e-3))
    config = EngineConfig.of(policy="temporal", pipeline_parallel_size=4)

    def usual_size(longest: int) -> int:
        arrivals = [Arrival(0.0, 100, longest, longest)] * 9 + [Arrival(0.0, 100, 40, 40)] * 1500
        node = Node((costs,) * 4, 40_000 // 16, 2048)
        spans = simulate(config, node, arrivals, record=True).spans
        return mode(span.num_tokens for span in spans if span.phase == "mixed")

    assert usual_size(longest=40) == 256
    assert usual_size(longest=1500) == 128


def test_prompts_of_online_requests_are_spread_unless_many_wait_or_offline_work_is_open() -> None:
    def sizes(count: int, *, offline: bool) -> set[int]:
        world = make_world()
        submit(world, 40, num_prompt_tokens=10, max_tokens=60, offline=offline)
        while world.scheduler.pool.waiting or world.scheduler.pool.num_live < 40:
            world.return_step()
        before = len(steps_of(world))
        submit(world, count, num_prompt_tokens=200, max_tokens=5, offline=False)
        for _ in range(10):
            world.return_step()
        return {sum(row_tokens(step)) for step in steps_of(world)[before:]}

    assert max(sizes(1, offline=False)) == 64  # 20 rows, and what the stair has left
    assert max(sizes(5, offline=False)) == 128
    assert max(sizes(40, offline=False)) == KNEE
    assert max(sizes(1, offline=True)) > 128


def test_an_online_request_is_fed_before_waiting_offline_work() -> None:
    world = make_world(max_prefill_wait=100.0)
    submit(world, 300, num_prompt_tokens=30, max_tokens=40, offline=True)
    for _ in range(10):
        world.return_step()
    assert len(world.scheduler.pool.waiting) > 100
    before = len(steps_of(world))
    submit(world, 1, num_prompt_tokens=30, max_tokens=5, offline=False)
    for _ in range(3):
        world.return_step()
    assert any(300 in row_ids(step) for step in steps_of(world)[before : before + 2])


def test_the_answer_that_outlasts_all_other_work_starts_first() -> None:
    def first_ids(*, longest_first: bool) -> list[int]:
        # The KV cache holds a few at a time.
        world = make_world(num_blocks=120, longest_first=longest_first)
        submit(world, 150, num_prompt_tokens=30, max_tokens=4, offline=True)
        submit(world, 1, num_prompt_tokens=30, max_tokens=400, offline=True)
        world.run_dry()
        world.check_ends()
        return list(dict.fromkeys(i for step in steps_of(world) for i in row_ids(step)))

    assert first_ids(longest_first=True).index(150) < 75
    assert first_ids(longest_first=False).index(150) == 150


def test_decode_micro_batches_read_an_equal_share_of_the_kv() -> None:
    world = make_world(num_stages=2)
    submit(world, 10, num_prompt_tokens=1000, max_tokens=60, offline=False)
    submit(world, 40, num_prompt_tokens=10, max_tokens=60, offline=False)
    world.run_dry()
    kv_tokens = [
        sum(memoryview(step.start_positions).cast("i"))
        for step in steps_of(world)
        if step.phase == "decode" and len(step.samples) > 1
    ]
    steady = kv_tokens[10:60]
    assert len(steady) == 50
    # One may exceed an equal share by a row, which the other is then missing.
    assert all(abs(a - b) <= 2 * 1060 for a, b in pairwise(steady))


def test_an_online_request_waits_little_more_than_a_turn_while_blocks_are_free() -> None:
    result = run(poisson(250, rate=40.0), kv_tokens=100_000)
    longest_step_s = max(span.ended_at - span.began_at for span in result.spans)
    waits = sorted(times.first_token_at - times.arrived_at for times in result.sequences)
    # One turn until the next launch, its own steps through the stages, chunks of a long prompt.
    assert waits[len(waits) * 99 // 100] < 4 * 4 * longest_step_s


def test_a_refill_begins_only_for_sequences_that_fit() -> None:
    for kv_tokens in (3_000, 100_000):
        result = run(poisson(150, rate=60.0), kv_tokens=kv_tokens)
        num_fed = len(result.sequences) + result.counters.preemptions
        assert result.counters.switches <= 2 * num_fed + 2


def test_phases_are_long_when_all_work_is_present_at_the_start() -> None:
    arrivals = [
        Arrival(0.0, a.num_prompt_tokens, a.output_len, a.predicted_len, offline=True)
        for a in poisson(600, rate=1.0)
    ]
    result = run(arrivals, kv_tokens=20_000)
    num_steps = len(result.spans) / 4
    assert result.counters.switches < num_steps / 20
