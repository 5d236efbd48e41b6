"""Decode rows: added together if blocks suffice, with the same result as one by one."""

from dataclasses import dataclass
from math import ceil, inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.policies.decode_rows import add_decodes
from engine.policies.preemption import reserve_blocks
from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from engine.state.sequence import Sequence, State
from tests.engine.pools import BLOCK_SIZE, ids, make_sequence, make_sequences


@dataclass(frozen=True)
class Row:
    """A ready sequence: its tokens, and its arrival time."""

    num_prompt_tokens: int
    num_generated: int
    arrived_at: int


ROWS = st.lists(
    # Often the newest token begins a block.
    st.builds(Row, st.sampled_from([3, 4, 8]), st.sampled_from([1, 2, 5]), st.integers(0, 3)),
    min_size=1,
    max_size=10,
)


def ready_pool(rows: list[Row], spare_blocks: int) -> Pool:
    """A pool where each row is ready, with `spare_blocks` free blocks."""
    ready = [
        (make_sequence(i, row.num_prompt_tokens, arrived_at=row.arrived_at), row.num_generated)
        for i, row in enumerate(rows)
    ]
    return make_sequences(ready, spare_blocks)


def decodes(pool: Pool, num_rows: int, kv_tokens: float = inf) -> list[int]:
    """The rows of the next micro-batch, from sequences in the order in which they became ready."""
    batch = MicroBatch()
    add_decodes(pool, batch, list(pool.ready.values()), num_rows, kv_tokens)
    assert batch.num_decodes == len(batch.sequences)
    return ids(batch.sequences)


def one_by_one(pool: Pool, idle: list[Sequence], num_rows: int, kv_tokens: float) -> list[Sequence]:
    """The reference: each in turn, if its block is free or can be freed."""
    rows: list[Sequence] = []
    for sequence in idle:
        if len(rows) == num_rows or sum(row.num_planned for row in rows) >= kv_tokens:
            break
        if sequence.state is State.READY and reserve_blocks(pool, sequence, rows):
            rows.append(sequence)
    return rows


def situation(pool: Pool) -> dict[str, Any]:
    """The state of all sequences, with their blocks."""
    return {
        "live": {s.sequence_id: (s.state, list(s.block_table)) for s in pool.live.values()},
        "waiting": ids(list(pool.waiting)),
        "preemptions": pool.counters.preemptions,
        "free": pool.ledger.num_free,
    }


@given(
    rows=ROWS,
    spare_blocks=st.integers(0, 4),
    num_rows=st.integers(0, 12),
    kv_tokens=st.one_of(st.just(inf), st.floats(0.1, 60)),
    data=st.data(),
)
def test_rows_blocks_and_preemptions_are_those_of_one_by_one(
    rows: list[Row], spare_blocks: int, num_rows: int, kv_tokens: float, data: st.DataObject
) -> None:
    pool, reference, batch = (
        ready_pool(rows, spare_blocks),
        ready_pool(rows, spare_blocks),
        MicroBatch(),
    )
    order = data.draw(st.permutations(range(len(rows))))
    add_decodes(pool, batch, [pool.ready[i] for i in order], num_rows, kv_tokens)
    expected = one_by_one(reference, [reference.ready[i] for i in order], num_rows, kv_tokens)
    assert ids(batch.sequences) == ids(expected)
    assert situation(pool) == situation(reference)
    for sequence in batch.sequences:
        assert len(sequence.block_table) == ceil(len(sequence.token_ids) / BLOCK_SIZE)


def test_rows_are_taken_in_the_order_given_up_to_a_number() -> None:
    pool, batch = ready_pool([Row(2, 1, 0)] * 4, 0), MicroBatch()
    add_decodes(pool, batch, [pool.ready[i] for i in (2, 0, 3, 1)], num_rows=3)
    assert ids(batch.sequences) == [2, 0, 3]


@pytest.mark.parametrize(("kv_tokens", "rows"), [(0.5, 1), (5, 1), (5.5, 2), (10, 2), (99, 4)])
def test_rows_are_taken_until_they_read_their_share_of_kv(kv_tokens: float, rows: int) -> None:
    pool = ready_pool([Row(5, 1, 0)] * 4, 0)
    assert decodes(pool, 10, kv_tokens) == list(range(rows))


def test_the_kv_read_bounds_the_rows_where_blocks_are_short_as_well() -> None:
    # Each reads 4 tokens and needs a block; only one is free, so the last is preempted.
    pool = ready_pool([Row(4, 1, i) for i in range(8)], 1)
    assert decodes(pool, 10, kv_tokens=8) == [0, 1]
    assert ids(list(pool.waiting)) == [7]


def test_a_rest_of_less_than_a_token_of_kv_allows_one_more_row() -> None:
    # As above, and half a token is still to be read after the second.
    pool = ready_pool([Row(4, 1, i) for i in range(8)], 1)
    assert decodes(pool, 10, kv_tokens=8.5) == [0, 1, 2]
    assert ids(list(pool.waiting)) == [6, 7]


def test_only_a_row_whose_newest_token_begins_a_block_takes_one() -> None:
    pool = ready_pool([Row(3, 1, 0), Row(4, 1, 0), Row(5, 1, 0)], 2)
    assert decodes(pool, 3) == [0, 1, 2]
    assert [len(s.block_table) for s in pool.live.values()] == [1, 2, 2]
    assert pool.ledger.num_free == 1


def test_blocks_for_all_rows_but_not_for_all_idle_sequences_preempt_none() -> None:
    pool = ready_pool([Row(4, 1, 0)] * 4, 2)
    assert decodes(pool, 2) == [0, 1]
    assert (pool.ledger.num_free, pool.counters.preemptions) == (0, 0)


def test_a_sequence_preempted_for_an_earlier_row_is_no_row() -> None:
    pool = ready_pool([Row(4, 1, i) for i in range(3)], 1)
    assert decodes(pool, 3) == [0, 1]
    assert ids(list(pool.waiting)) == [2]


def test_a_row_without_blocks_is_preempted_and_the_next_one_is_taken() -> None:
    # The youngest comes first; it finds no block, is preempted, and its block goes to the second.
    pool, batch = ready_pool([Row(4, 1, 0), Row(4, 1, 9)], 0), MicroBatch()
    add_decodes(pool, batch, [pool.ready[1], pool.ready[0]], num_rows=1)
    assert ids(batch.sequences) == [0]
    assert ids(list(pool.waiting)) == [1]
