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
    for sequence in idle:
        if batch.num_decodes >= num_rows or batch.kv_tokens >= kv_tokens:
            return
        # One that is not ready any more was pre-empted for one before it.
        if sequence.state is State.READY and make_room(pool, sequence, batch.sequences):
            batch.add_decode(sequence)
