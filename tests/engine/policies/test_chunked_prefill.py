"""Chunked prefill: prompts back to back, cut to the size of the step, never to a single token."""

from collections.abc import Callable
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema.scheduler import SHORTEST_LIMIT
from engine.policies.chunked_prefill import PrefillCursor, first_fitting
from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from engine.state.sequence import Sequence, State
from tests.engine.pools import make_pool, make_ready, make_sequence

Chunk = tuple[int, int, int]
"""Sequence id, first token, and number of tokens."""


def queue_of(prompts: list[int], num_blocks: int = 1000) -> Pool:
    """A pool with waiting prompts of these lengths."""
    pool = make_pool(num_blocks)
    for i, num_tokens in enumerate(prompts):
        pool.add(make_sequence(i, num_tokens))
    return pool


def fill(
    cursor: PrefillCursor,
    pool: Pool,
    num_tokens: int,
    next_admitted: Callable[[], Sequence | None] | None = None,
) -> list[Chunk]:
    """Fill a micro-batch and launch it; returns its rows."""
    batch = MicroBatch()
    added = cursor.fill(pool, batch, num_tokens, next_admitted or pool.waiting.first)
    assert added == batch.total_tokens
    rows = zip(batch.sequences, batch.num_tokens, strict=True)
    chunks = [(s.sequence_id, s.num_planned, count) for s, count in rows]
    pool.launch(batch.sequences, batch.num_tokens)
    return chunks


@given(
    prompts=st.lists(st.integers(1, 30), max_size=10),
    sizes=st.lists(st.integers(0, 40), max_size=12),
)
def test_each_step_feeds_the_next_tokens_of_all_prompts_laid_end_to_end(
    prompts: list[int], sizes: list[int]
) -> None:
    cursor, pool = PrefillCursor(), queue_of(prompts)
    tokens = [(i, place) for i, num_tokens in enumerate(prompts) for place in range(num_tokens)]
    for size in sizes:
        chunks = fill(cursor, pool, size)
        fed = [(i, start + n) for i, start, count in chunks for n in range(count)]
        assert fed == tokens[: len(fed)]
        assert size - SHORTEST_LIMIT < len(fed) <= size or len(fed) == len(tokens)
        assert len({i for i, _, _ in chunks}) == len(chunks)
        assert all(count > 0 for _, _, count in chunks)
        del tokens[: len(fed)]
        # The rest of the prompt that was begun, and no other.
        begun = cursor.half_fed
        assert (begun is not None) == bool(tokens and tokens[0][1] > 0)
        assert begun is None or begun.num_planned == tokens[0][1]


@given(
    prompts=st.lists(st.integers(1, 30), min_size=1, max_size=10),
    num_decodes=st.integers(0, 2),
    sizes=st.lists(st.integers(SHORTEST_LIMIT, 40), min_size=1, max_size=5),
)
def test_no_prompt_is_cut_before_or_after_a_single_token(
    prompts: list[int], num_decodes: int, sizes: list[int]
) -> None:
    """Not even if decode rows leave room for one: then nothing is fed."""
    cursor, pool = PrefillCursor(), queue_of(prompts)
    decodes = [make_ready(pool, make_sequence(100 + i, 2)) for i in range(num_decodes)]
    found: dict[int, list[int]] = {i: [] for i in range(len(prompts))}
    for size in cycle([*sizes, 8]):
        batch = MicroBatch()
        batch.add_decodes(decodes)
        cursor.fill(pool, batch, size - num_decodes, pool.waiting.first)
        rows = list(zip(batch.sequences, batch.num_tokens, strict=True))[num_decodes:]
        for sequence, count in rows:
            found[sequence.sequence_id].append(count)
        pool.launch(batch.sequences, batch.num_tokens)
        pool.make_ready(decodes)
        if not rows and size == 8:
            break
    assert [sum(chunks) for chunks in found.values()] == prompts
    for num_tokens, chunks in zip(prompts, found.values(), strict=True):
        assert min(chunks) >= min(2, num_tokens)


def test_the_rest_of_a_prompt_comes_first_while_its_first_chunk_is_in_flight() -> None:
    cursor, pool = PrefillCursor(), queue_of([10, 6])
    assert fill(cursor, pool, 7) == [(0, 0, 7)]
    assert pool.live[0].state is State.RUNNING
    assert fill(cursor, pool, 7) == [(0, 7, 3), (1, 0, 4)]
    assert fill(cursor, pool, 6) == [(1, 4, 2)]
    assert fill(cursor, pool, 6) == []


def test_a_prompt_that_ends_with_the_step_leaves_nothing_half_fed() -> None:
    cursor, pool = PrefillCursor(), queue_of([6, 3])
    assert fill(cursor, pool, 6) == [(0, 0, 6)]
    assert cursor.half_fed is None


def test_without_tokens_left_no_sequence_is_requested() -> None:
    cursor, pool = PrefillCursor(), queue_of([10, 3])

    def none_expected() -> Sequence | None:
        raise AssertionError

    assert fill(cursor, pool, 0, none_expected) == []
    assert cursor.fill(pool, MicroBatch(), -3, none_expected) == 0
    fill(cursor, pool, 4)
    assert cursor.fill(pool, MicroBatch(), -3, none_expected) == 0
    assert fill(cursor, pool, 4, none_expected) == [(0, 4, 4)]


def test_a_prompt_without_free_blocks_keeps_waiting() -> None:
    cursor, pool = PrefillCursor(), queue_of([8, 9, 1], num_blocks=4)
    assert fill(cursor, pool, 100) == [(0, 0, 8)]
    assert [s.sequence_id for s in pool.waiting] == [1, 2]
    assert cursor.half_fed is None


def test_a_begun_prompt_holds_blocks_for_all_its_tokens() -> None:
    cursor, pool = PrefillCursor(), queue_of([13])
    fill(cursor, pool, 1)
    assert pool.ledger.num_used == 4


def test_the_returned_sequence_is_fed_not_the_one_that_waits_longest() -> None:
    cursor, pool = PrefillCursor(), queue_of([5, 5, 5])
    named = iter([pool.waiting.find(2), pool.waiting.find(0), None])
    assert fill(cursor, pool, 100, lambda: next(named)) == [(2, 0, 5), (0, 0, 5)]


def test_after_a_prompt_that_ended_half_fed_the_next_is_fed() -> None:
    cursor, pool = PrefillCursor(), queue_of([10, 3])
    fill(cursor, pool, 6)
    pool.finish(pool.live[0])
    assert cursor.half_fed is None
    assert fill(cursor, pool, 6) == [(1, 0, 3)]


def test_generated_tokens_of_a_preempted_sequence_are_fed_again_with_its_prompt() -> None:
    cursor, pool = PrefillCursor(), make_pool(1000)
    sequence = make_ready(pool, make_sequence(0, 7), num_generated=3)
    pool.preempt(sequence)
    assert fill(cursor, pool, 6) == [(0, 0, 6)]
    assert fill(cursor, pool, 6) == [(0, 6, 4)]


def test_prompts_come_after_the_decodes_of_a_step() -> None:
    pool, batch = queue_of([5]), MicroBatch()
    decode = make_ready(pool, make_sequence(9, 2))
    batch.add_decodes([decode])
    assert PrefillCursor().fill(pool, batch, 3, pool.waiting.first) == 3
    assert [s.sequence_id for s in batch.sequences] == [9, 0]
    assert (batch.num_tokens, batch.phase) == ([1, 3], "mixed")


@pytest.mark.parametrize(("num_blocks", "fits"), [(197, True), (198, False)])
def test_a_hundredth_of_the_blocks_is_kept_for_growing_sequences(
    num_blocks: int, fits: bool
) -> None:
    pool = make_pool(num_blocks=300)
    size = pool.ledger.block_size
    make_ready(pool, make_sequence(0, 100 * size))  # 200 are free, 3 of them kept
    pool.add(make_sequence(1, num_blocks * size))
    assert (first_fitting(pool, 10) is not None) == fits


def test_without_live_sequences_the_first_is_admitted_whatever_is_kept() -> None:
    pool = make_pool(num_blocks=300)
    sequence = make_sequence(0, 300 * pool.ledger.block_size)
    pool.add(sequence)
    assert first_fitting(pool, 10) is sequence


def test_sequences_behind_one_that_does_not_fit_wait_too() -> None:
    pool = make_pool(num_blocks=300)
    size = pool.ledger.block_size
    make_ready(pool, make_sequence(0, 200 * size))
    pool.add(make_sequence(1, 200 * size))
    pool.add(make_sequence(2, 1))
    assert first_fitting(pool, 10) is None
