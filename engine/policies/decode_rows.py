"""Decode rows: who of the ready sequences goes into a micro-batch."""

from bisect import bisect_left
from itertools import accumulate
from math import inf

from engine.policies.preemption import make_room
from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from engine.state.sequence import Sequence, State


def add_decodes(
    pool: Pool, batch: MicroBatch, idle: list[Sequence], num_rows: int, kv_tokens: float = inf
) -> None:
    """Add the ready sequences `idle` in order, pre-empting others for their blocks.

    Up to `num_rows`, and until the rows read `kv_tokens` of resident KV.
    """
    rows = idle[:num_rows]
    if kv_tokens < inf:
        reads = list(accumulate([sequence.num_planned for sequence in rows]))
        rows = rows[: bisect_left(reads, kv_tokens) + 1]
    size, ledger = pool.ledger.block_size, pool.ledger
    growing = [s for s in rows if len(s.token_ids) > len(s.block_table) * size]
    if len(growing) <= ledger.num_free:  # each by a block
        for sequence in growing:
            ledger.extend(sequence.block_table, len(sequence.token_ids))
    else:
        rows = _preempting(pool, idle, num_rows, kv_tokens)
    batch.add_decodes(rows)


def _preempting(
    pool: Pool, idle: list[Sequence], num_rows: int, kv_tokens: float
) -> list[Sequence]:
    """The rows that find room one after the other; those that must go make it."""
    rows: list[Sequence] = []
    for sequence in idle:
        if len(rows) >= num_rows or kv_tokens <= 0:
            break
        # One that is no longer ready was pre-empted for one before it.
        if sequence.state is State.READY and make_room(pool, sequence, rows):
            rows.append(sequence)
            kv_tokens -= sequence.num_planned
    return rows
