"""Giving way: offline rows go for somebody who has been waited for too long.

Every policy admits online sequences first, but only into room that there is. A batch of long
answers may hold all of it for minutes, while online requests queue until they are refused. So once
the first of them has waited for `max_prefill_wait`, the youngest offline rows are pre-empted until
there is room. A policy that has room may still expect the live ones to need it; where the same one
waits on, more of them go, in growing numbers, so that it waits for no long answer's end.
"""

from configs.schema import AdmissionConfig
from engine.state.pool import Pool
from engine.state.sequence import Sequence

# Every policy looks at who waits at least once in four rounds of S steps.
_PATIENCE_ROUNDS = 5


class PriorityPreemption:
    """Call `make_room` before each look for a micro-batch."""

    def __init__(self, config: AdmissionConfig, num_stages: int) -> None:
        self._max_wait_s = config.max_prefill_wait
        self._max_live = config.max_live(num_stages)
        self._patience = _PATIENCE_ROUNDS * num_stages
        self._first: Sequence | None = None
        self._step = 0  # since which it is the first, or others went for it
        self._num_next = 1

    def make_room(self, pool: Pool, now: float) -> None:
        """Pre-empt as many offline rows as are in the way of the first who is waited for."""
        first, step = pool.waiting.first(), pool.counters.steps
        if first is None or first.submit.offline or not pool.has_offline:
            return
        if pool.waiting.online_wait_s(now) < self._max_wait_s:
            return
        if first is not self._first:
            self._first, self._step, self._num_next = first, step, 1
        if self._has_room(pool, first):
            if step - self._step > self._patience:
                for victim in _youngest_first(pool)[: self._num_next]:
                    pool.preempt(victim)
                self._step, self._num_next = step, 2 * self._num_next
            return
        victims = _youngest_first(pool) if self._can_have_room(pool, first) else []
        while victims and not self._has_room(pool, first):
            pool.preempt(victims.pop(0))
            self._step = step

    def _has_room(self, pool: Pool, sequence: Sequence) -> bool:
        needed = pool.ledger.blocks_for(len(sequence.token_ids))
        return pool.num_live < self._max_live and needed <= pool.ledger.num_free

    def _can_have_room(self, pool: Pool, sequence: Sequence) -> bool:
        """Whether all offline rows are enough; those in flight will come back."""
        offline = [s for s in pool.live.values() if s.submit.offline]
        num_blocks = pool.ledger.num_free + sum(len(s.block_table) for s in offline)
        has_blocks = pool.ledger.blocks_for(len(sequence.token_ids)) <= num_blocks
        return has_blocks and pool.num_live - len(offline) < self._max_live


def _youngest_first(pool: Pool) -> list[Sequence]:
    """The offline rows that are not in flight."""
    idle = (s for s in pool.ready.values() if s.submit.offline)
    return sorted(idle, key=lambda s: (s.arrived_at, s.sequence_id), reverse=True)
