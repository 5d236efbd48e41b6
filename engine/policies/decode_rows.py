"""Decode rows: selects ready sequences for a micro-batch and reserves their blocks."""

from bisect import bisect_left
from itertools import accumulate
from math import inf

from engine.policies.preemption import reserve_blocks
from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from engine.state.sequence import Sequence, State


def add_decodes(
    pool: Pool, batch: MicroBatch, idle: list[Sequence], num_rows: int, kv_tokens: float = inf
) -> None:
    """Add the ready sequences `idle` in order; preempt others if blocks are missing.

    At most `num_rows` rows are added, and no more after they read `kv_tokens` of resident KV.
    """
    rows = idle[:num_rows]
    if kv_tokens < inf:
        reads = list(accumulate([sequence.num_planned for sequence in rows]))
        rows = rows[: bisect_left(reads, kv_tokens) + 1]
    size, ledger = pool.ledger.block_size, pool.ledger
    growing = [s for s in rows if len(s.token_ids) > len(s.block_table) * size]
    if len(growing) <= ledger.num_free:  # each needs one block
        for sequence in growing:
            pool.grow(sequence)
    else:
        rows = _preempting(pool, idle, num_rows, kv_tokens)
    batch.add_decodes(rows)


def _preempting(
    pool: Pool, idle: list[Sequence], num_rows: int, kv_tokens: float
) -> list[Sequence]:
    """Select rows one by one, preempting the youngest ready sequences to get blocks."""
    rows: list[Sequence] = []
    for sequence in idle:
        if len(rows) >= num_rows or kv_tokens <= 0:
            break
        # A sequence that is no longer ready was preempted for an earlier row.
        if sequence.state is State.READY and reserve_blocks(pool, sequence, rows):
            rows.append(sequence)
            kv_tokens -= sequence.num_planned
    return rows
