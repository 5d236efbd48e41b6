"""The prefix cache: what sequences share, what they must not, and what a hit costs."""

from array import array
from itertools import pairwise

import pytest
from msgspec.structs import replace

from configs.config import EngineConfig
from engine.state.blocks import BlockLedger
from engine.state.counters import Counters
from engine.state.length_errors import LengthErrors
from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from engine.state.prefix_cache import PrefixCache
from engine.state.sequence import Sequence
from engine.state.waiting import WaitingQueue
from tests.engine.pools import BLOCK_SIZE, point
from tests.engine.world import World, make_submit
from wire.messages import RopeRule, Sampling, Step

POLICIES = ["td-pipe", "temporal", "hybrid", "separate"]
TEXT = list(range(1, 14))  # three full blocks and a token


def make_pool(
    num_blocks: int = 20, *, invariant: bool = False, rope: RopeRule | None = None
) -> Pool:
    ledger = BlockLedger(num_blocks, BLOCK_SIZE)
    cache = PrefixCache(ledger, is_invariant=invariant, rope=rope)
    return Pool(ledger, WaitingQueue(), LengthErrors(20.0), Counters(), cache)


def sequence_of(
    sequence_id: int, prompt: list[int], *, salt: str = "", num_prompt_logprobs: int = -1
) -> Sequence:
    sampling = Sampling(temperature=0.0, num_prompt_logprobs=num_prompt_logprobs)
    submit = replace(make_submit(sequence_id, prompt, 100), sampling=sampling, cache_salt=salt)
    return Sequence(submit, float(sequence_id), point(10, 100))


def run(pool: Pool, sequence: Sequence, output: list[int] = []) -> int:  # noqa: B006
    """Feed the prompt and then the output's tokens but the last; returns the cached tokens."""
    pool.add(sequence)
    assert pool.admit(sequence)
    hit = sequence.num_planned
    feed(pool, sequence)
    for token_id in output:
        sequence.token_ids.append(token_id)
        pool.make_ready([sequence])
        if token_id != output[-1]:
            assert pool.grow(sequence)
            pool.launch([sequence], [1])
    return hit


def feed(pool: Pool, sequence: Sequence) -> None:
    batch = MicroBatch()
    num_tokens = pool.feed(batch, sequence, 1000)
    assert num_tokens == sequence.num_unplanned > 0
    pool.launch([sequence], [num_tokens])


@pytest.mark.parametrize(
    ("prompt", "hit"),
    [
        (TEXT, 12),
        (TEXT[:12], 8),  # wholly cached: its last token is computed
        ([*TEXT[:11], 99, 99], 8),
        ([*TEXT[:8], 99, *TEXT[9:]], 8),
        ([99, *TEXT[1:]], 0),
        ([*TEXT, *TEXT], 12),
        (TEXT[:4], 0),
        (TEXT[:5], 4),
        (TEXT[4:], 0),  # the same tokens at other positions
    ],
)
def test_a_prompt_shares_the_full_blocks_with_which_another_one_began(
    prompt: list[int], hit: int
) -> None:
    pool = make_pool()
    run(pool, first := sequence_of(0, TEXT))
    assert run(pool, other := sequence_of(1, prompt)) == hit
    shared = hit // BLOCK_SIZE
    assert other.block_table[:shared] == first.block_table[:shared]
    assert not set(other.block_table[shared:]) & set(first.block_table)
    assert pool.ledger.num_used == len(first.block_table) + len(other.block_table) - shared
    assert other.num_shared == shared


def test_a_block_is_used_in_the_step_that_fills_it() -> None:
    pool, batch = make_pool(), MicroBatch()
    for i in range(3):
        pool.add(sequence_of(i, TEXT))
    starts = []
    while (sequence := pool.first_waiting()) is not None:
        assert pool.admit(sequence)
        starts.append(sequence.num_planned)
        pool.feed(batch, sequence, 1000)
    assert starts == [0, 12, 12]
    assert batch.num_tokens == [13, 1, 1]
    assert (pool.counters.prefix_queries, pool.counters.prefix_hits) == (39, 24)


def test_generated_tokens_are_found_by_the_next_turn() -> None:
    pool = make_pool()
    run(pool, first := sequence_of(0, TEXT), [21, 22, 23, 24])  # the last one has no KV
    pool.finish(first)
    assert run(pool, sequence_of(1, [*TEXT, 21, 22, 23, 24, 5])) == 16
    assert run(pool, sequence_of(2, [*TEXT, 21, 22, 99, 24, 5])) == 12


def test_under_batch_invariance_only_prompts_are_shared_and_two_tokens_are_fed() -> None:
    pool = make_pool(invariant=True)
    run(pool, first := sequence_of(0, TEXT), [21, 22, 23, 24])
    pool.finish(first)
    assert run(pool, sequence_of(1, [*TEXT, 21, 22, 23, 24, 5])) == 12
    assert run(pool, sequence_of(2, TEXT)) == 8
    assert run(pool, sequence_of(3, [*TEXT, 7])) == 12


def test_a_preempted_sequence_finds_its_own_blocks_even_under_batch_invariance() -> None:
    pool = make_pool(invariant=True)
    run(pool, sequence := sequence_of(0, TEXT), [21, 22, 23, 24])
    pool.make_ready([sequence])
    table = sequence.block_table[:]
    pool.preempt(sequence)
    assert (pool.ledger.num_used, sequence.expected_hit) == (0, 12)
    assert pool.admit(sequence)
    assert (sequence.num_planned, sequence.num_shared) == (12, 0)
    assert sequence.block_table[:3] == table[:3]
    # 16 tokens had KV; the last block holds the 17th token, and was not full.
    assert pool.counters.recomputed_tokens == 4


def test_salts_and_rope_lengths_separate_what_is_alike_otherwise() -> None:
    pool = make_pool(40, rope=RopeRule(0, 12))
    longer, longest = [*TEXT, 1], [*TEXT, 1, 2]
    for i, (prompt, salt) in enumerate([(TEXT[:12], ""), (longer, ""), (TEXT, "a")]):
        assert run(pool, sequence_of(i, prompt, salt=salt)) == 0
    assert run(pool, sequence_of(3, TEXT[:11])) == 8  # both within the unscaled length
    assert run(pool, sequence_of(4, longer)) == 12
    assert run(pool, sequence_of(5, longest)) == 0  # another length, other frequencies
    assert run(pool, sequence_of(6, TEXT, salt="a")) == 12
    assert run(pool, sequence_of(7, TEXT, salt="b")) == 0


def test_a_prompt_is_scored_as_a_whole_and_found_by_others() -> None:
    pool = make_pool()
    run(pool, sequence_of(0, TEXT))
    scoring = sequence_of(1, TEXT, num_prompt_logprobs=0)
    assert run(pool, scoring) == 0
    scoring.num_scored = len(TEXT)
    pool.make_ready([scoring])
    pool.preempt(scoring)
    assert pool.admit(scoring)
    assert scoring.num_planned == 12  # the scores were sent


def test_blocks_are_kept_until_they_are_needed_tails_first() -> None:
    pool = make_pool(8)
    for i, prompt in enumerate([TEXT, [50, *TEXT]]):
        run(pool, sequence := sequence_of(i, prompt))
        pool.finish(sequence)
    assert (pool.ledger.num_used, pool.ledger.num_cached) == (0, 6)
    run(pool, sequence_of(2, [60] * 13))  # two empty blocks, and two of the oldest prompt's tail
    pool.add(old := sequence_of(3, TEXT))
    pool.add(new := sequence_of(4, [50, *TEXT]))
    assert [len(pool.prefix_cache.find(s)) for s in (old, new)] == [1, 3]


def test_a_waiting_sequence_expects_the_prefix_of_another_one_and_counts_it_once() -> None:
    pool = make_pool()
    pool.add(first := sequence_of(0, TEXT))
    pool.add(second := sequence_of(1, [*TEXT, 5]))
    assert [s.num_unplanned for s in (first, second)] == [13, 2]
    assert pool.waiting_tokens == 15
    assert list(pool.prefix_cache.shares([first, second])) == [0, 3]
    assert list(pool.prefix_cache.shares([second, first])) == [0, 3]
    pool.finish(first)
    pool.add(third := sequence_of(2, [1, 2, 3, 4, 5]))
    assert third.expected_hit == 4
    pool.finish(second)
    pool.finish(third)
    assert pool.waiting_tokens == 0
    pool.add(fourth := sequence_of(3, TEXT))
    assert fourth.expected_hit == 0


def test_blocks_of_an_ended_sequence_count_for_those_that_share_them() -> None:
    pool = make_pool()
    run(pool, first := sequence_of(0, TEXT))
    run(pool, second := sequence_of(1, TEXT))
    run(pool, third := sequence_of(2, TEXT))
    assert (pool.ledger.num_used, pool.num_inherited) == (6, 0)
    pool.finish(first)
    assert (pool.ledger.num_used, pool.num_inherited) == (5, 3)
    pool.finish(third)
    assert (pool.ledger.num_used, pool.num_inherited) == (4, 3)
    pool.finish(second)
    assert (pool.ledger.num_used, pool.num_inherited) == (0, 0)


def test_a_disabled_cache_keeps_nothing() -> None:
    ledger = BlockLedger(20, BLOCK_SIZE)
    cache = PrefixCache(ledger, is_enabled=False)
    pool = Pool(ledger, WaitingQueue(), LengthErrors(20.0), Counters(), cache)
    assert [run(pool, sequence_of(i, TEXT)) for i in range(2)] == [0, 0]
    assert (ledger.num_cached, pool.counters.prefix_hits) == (0, 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_feeds_a_shared_prompt_once(policy: str) -> None:
    world = World(EngineConfig.of(policy=policy, block_size=4), 1000)
    for i in range(20):
        world.submit(make_submit(i, [*TEXT, i], 5, stop=False))
    world.run_dry()
    world.check_ends()
    # Every prompt but the first feeds its last two tokens; each output's last token is not fed.
    fed = sum(sum(_ints(step.num_tokens)) for step in steps_of(world))
    assert fed == 14 + 19 * 2 + 20 * 4
    assert world.hits == dict.fromkeys(range(1, 20), 12)
    assert world.scheduler.counters.prefix_hits == 19 * 12


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_found_after_the_stages_were_lost(policy: str) -> None:
    world = World(EngineConfig.of(policy=policy, block_size=4), 1000)
    for i in range(4):
        world.submit(make_submit(i, [*TEXT, i], 30, stop=False))
    for _ in range(6):
        world.return_step()
    before = len(world.events)
    world.lose_pipeline()
    first = next(m for _, _, answer in world.events[before:] for m in answer if isinstance(m, Step))
    assert _ints(first.start_positions)[0] == 0
    world.run_dry()
    world.check_ends()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_prompt_waits_for_the_blocks_of_one_that_is_half_fed(policy: str) -> None:
    config = EngineConfig.of(
        policy=policy, block_size=4, max_num_batched_tokens=8, pipeline_parallel_size=3
    )
    world = World(config, 1000)
    text = list(range(1, 41))
    for i in range(3):
        world.submit(make_submit(i, [*text, 41 + i], 1, stop=False))
    world.run_dry()
    world.check_ends()
    assert world.hits == {1: 40, 2: 40}


def test_more_answers_fit_if_they_share_their_prompt() -> None:
    def most_live(prompts: list[list[int]]) -> int:
        world = World(EngineConfig.of(block_size=4, policy="temporal"), 60)
        for i, prompt in enumerate(prompts):
            world.submit(make_submit(i, prompt, 20, stop=False))
        most = 0
        while world.return_step():
            most = max(most, world.scheduler.pool.num_live)
        world.check_ends()
        return most

    shared = [[*range(1, 41), i] for i in range(12)]
    distinct = [[i, *range(1, 41)] for i in range(12)]
    assert most_live(shared) > 1.5 * most_live(distinct)


def steps_of(world: World) -> list[Step]:
    return [m for _, _, answer in world.events for m in answer if isinstance(m, Step)]


def _ints(packed: bytes) -> list[int]:
    return array("i", packed).tolist()


def test_keys_are_a_chain() -> None:
    pool = make_pool()
    run(pool, first := sequence_of(0, [7] * 16))
    assert len(set(first.prefix_keys)) == 4  # the same tokens, after other blocks
    assert all(a != b for a, b in pairwise(first.block_table))


def offline(pool: Pool, sequence_id: int, prompt: list[int], at: float = 0.0) -> None:
    submit = replace(make_submit(sequence_id, prompt, 100), offline=True)
    pool.add(Sequence(submit, at, point(10, 100)))


def test_offline_sequences_with_a_common_prefix_are_neighbours() -> None:
    pool = make_pool()
    system, documents = [1] * 4, [[10] * 4, [20] * 8, [30] * 4]
    for i in range(12):
        offline(pool, i, [*system, *documents[i % 3], i, i, i, i])
    offline(pool, 12, [99] * 8)
    offline(pool, 13, [*system, *documents[1], 7, 7])
    # Those who share most with the first one come first; each document's in order of arrival.
    assert [s.sequence_id for s in pool.waiting] == [
        *(0, 3, 6, 9),
        *(1, 13, 4, 7, 10),  # all full blocks of 13 are also those of 1
        *(2, 5, 8, 11),
        12,
    ]


def test_without_common_prefixes_and_online_the_order_is_that_of_arrival() -> None:
    pool = make_pool()
    for i, prompt in enumerate([[5] * 9, [3] * 9, [4] * 9]):
        offline(pool, i, prompt, float(i))
    for i in range(3, 9):
        pool.add(sequence_of(i, [1 + i % 2] * 9))
    assert [s.sequence_id for s in pool.waiting] == [3, 4, 5, 6, 7, 8, 0, 1, 2]


def test_a_prefix_that_never_ends_does_not_keep_others_waiting_for_ever() -> None:
    pool = make_pool()
    offline(pool, 0, [1] * 9, 0.0)
    offline(pool, 1, [2] * 9, 1.0)
    for i in range(2, 100):
        offline(pool, i, [1] * 9, float(i))
    ids = [s.sequence_id for s in pool.waiting]
    assert ids.index(1) == 60  # 0, and those that arrived within 60 s of it
    assert ids[61:] == list(range(61, 100))


def test_a_sequence_that_outgrows_its_rope_does_not_leave_its_old_keys_to_long_prompts() -> None:
    pool = make_pool(40, rope=RopeRule(6, 6))  # the prompt has no full block yet
    run(pool, first := sequence_of(0, [1, 2, 3]), [4, 5, 6, 7])
    pool.make_ready([first])
    pool.preempt(first)  # beyond 6 tokens its frequencies are others
    assert first.expected_hit == 0
    assert pool.admit(first)
    assert first.num_planned == 0
    assert run(pool, sequence_of(1, [1, 2, 3, 4, 5, 6, 7, 8])) == 0
    assert run(pool, sequence_of(2, [1, 2, 3, 4, 5])) == 4  # short ones find them
