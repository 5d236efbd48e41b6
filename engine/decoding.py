"""Decode rows: who of the ready sequences goes into a micro-batch."""

from collections.abc import Iterable
from math import inf

from engine.batches import MicroBatch
from engine.pool import Pool
from engine.preemption import make_room
from engine.sequence import Sequence, State


def add_decodes(
    pool: Pool,
    batch: MicroBatch,
    idle: Iterable[Sequence],
    num_rows: int,
    kv_tokens: float = inf,
) -> None:
    """Add the `idle` sequences in order, pre-empting others for their blocks.

    Up to `num_rows`, and until the rows read `kv_tokens` of resident KV.
    """
    rows: list[Sequence] = []
    room, block_size, is_ready = kv_tokens, pool.ledger.block_size, State.READY
    for sequence in idle:
        if len(rows) >= num_rows or room <= 0:
            break
        if sequence.state is not is_ready:
            continue  # it was pre-empted for one before it
        has_room = len(sequence.token_ids) <= len(sequence.block_table) * block_size
        if has_room or make_room(pool, sequence, rows):
            rows.append(sequence)
            room -= sequence.num_planned
    batch.add_decodes(rows)
