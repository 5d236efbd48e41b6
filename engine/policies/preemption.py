"""Preemption by recomputation: the youngest sequences free blocks for a row that must grow.

Offline sequences are preempted before online ones. The oldest remaining sequence is never
preempted, so that there is always progress and admission cannot deadlock.
"""

from engine.state.pool import Pool
from engine.state.sequence import Sequence


def reserve_blocks(pool: Pool, sequence: Sequence, taken: list[Sequence]) -> bool:
    """Reserve blocks for all tokens of a ready sequence, by preempting others not in `taken`.

    Returns False if the sequence was itself the youngest and was preempted, or if it must wait
    until steps in flight return and their sequences can be preempted.
    """
    while not pool.grow(sequence):
        is_taken = {row.sequence_id for row in taken}
        idle = [
            s for s in pool.ready.values() if s.sequence_id not in is_taken and not s.is_pending
        ]
        if not idle:
            return False  # until the pending tokens have come
        youngest = max(idle, key=lambda s: (s.submit.offline, s.arrived_at, s.sequence_id))
        if youngest is sequence and len(idle) == 1:
            return False
        pool.preempt(youngest)
        if youngest is sequence:
            return False
    return True
