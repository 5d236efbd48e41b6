"""Priority preemption: offline sequences are preempted for online requests that wait too long.

Every policy admits online sequences first, but only into free capacity. A batch of long answers
can occupy all capacity for minutes, while online requests queue until they are refused. Therefore,
once the first online request has waited for `max_prefill_wait`, offline sequences are preempted,
the youngest first, until the request fits. A policy may still not admit it, if it expects the live
sequences to need the blocks. If the same request keeps waiting, offline sequences are preempted in
doubling numbers, so that the request never waits for the end of a long answer.
"""

from configs.schema.scheduler import SchedulerConfig
from engine.state.pool import Pool
from engine.state.sequence import Sequence

# Pipeline turns before more sequences are preempted: every policy checks the waiting queue at least
# once in four turns of S steps.
_PATIENCE_TURNS = 5


class PriorityPreemption:
    """Call `preempt_offline` before asking the policy for micro-batches."""

    def __init__(self, config: SchedulerConfig, num_stages: int) -> None:
        self._max_wait_s = config.max_prefill_wait
        self._max_live = config.max_live(num_stages)
        self._patience = _PATIENCE_TURNS * num_stages
        self._first: Sequence | None = None
        self._step = 0  # at the last preemption for `_first`, or when it became `_first`
        self._num_next = 1

    def preempt_offline(self, pool: Pool, now: float) -> None:
        """Preempt as many offline sequences as the first online request needs.

        Nothing happens before that request has waited for `max_prefill_wait`. `now` is in seconds.
        """
        first, step = pool.waiting.first(), pool.counters.steps
        if first is None or first.submit.offline or not pool.has_offline:
            return
        if pool.waiting.online_wait_s(now) < self._max_wait_s:
            return
        if first is not self._first:
            self._first, self._step, self._num_next = first, step, 1
        if self._fits(pool, first):
            if step - self._step > self._patience:
                for victim in _youngest_first(pool)[: self._num_next]:
                    pool.preempt(victim)
                self._step, self._num_next = step, 2 * self._num_next
            return
        victims = _youngest_first(pool) if self._can_fit(pool, first) else []
        while victims and not self._fits(pool, first):
            pool.preempt(victims.pop(0))
            self._step = step

    def _fits(self, pool: Pool, sequence: Sequence) -> bool:
        return (
            pool.num_live < self._max_live
            and pool.blocks_to_admit(sequence) <= pool.ledger.num_free
        )

    def _can_fit(self, pool: Pool, sequence: Sequence) -> bool:
        """Whether preempting all offline sequences would be enough, including those in flight."""
        offline = [s for s in pool.live.values() if s.submit.offline]
        num_blocks = pool.ledger.num_free + sum(len(s.block_table) - s.num_shared for s in offline)
        has_blocks = pool.blocks_to_admit(sequence) <= num_blocks
        return has_blocks and pool.num_live - len(offline) < self._max_live


def _youngest_first(pool: Pool) -> list[Sequence]:
    """The offline sequences that are ready (not in flight), youngest first."""
    idle = (s for s in pool.ready.values() if s.submit.offline and not s.is_pending)
    return sorted(idle, key=lambda s: (s.arrived_at, s.sequence_id), reverse=True)
