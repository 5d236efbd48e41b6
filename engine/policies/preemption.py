"""Pre-emption by recompute: a block for a row that must grow, at the cost of the youngest.

Offline work goes before anybody's that is waited for. The oldest sequence that is left is never
pre-empted, so that something always goes forward and admission cannot deadlock.
"""

from engine.state.pool import Pool
from engine.state.sequence import Sequence


def make_room(pool: Pool, sequence: Sequence, taken: list[Sequence]) -> bool:
    """Blocks for all tokens of the ready `sequence`, if need be those of ready ones not in `taken`.

    False when it was itself the youngest and had to go, or when it must wait: those in flight come
    back, with blocks or as victims.
    """
    while not pool.ledger.extend(sequence.block_table, len(sequence.token_ids)):
        is_taken = {row.sequence_id for row in taken}
        idle = [s for s in pool.ready.values() if s.sequence_id not in is_taken]
        youngest = max(idle, key=lambda s: (s.submit.offline, s.arrived_at, s.sequence_id))
        if youngest is sequence and len(idle) == 1:
            return False
        pool.preempt(youngest)
        if youngest is sequence:
            return False
    return True
