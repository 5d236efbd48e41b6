"""Probation: after a loss those that were in flight are tried alone, so that a guilty one is found.

A request that makes a stage fail does so again after every restart, and would take everybody else's
with it. So each row that was in flight when the stages were lost has a strike, and the next life of
the pipeline begins by feeding those sequences in steps of their own, all they have so far, until
each has sampled once more: that is where it was. Who gets there is cleared, who fails there alone
once more is guilty, and answered. What this costs is little: what was in flight has to be fed anew
in any case, and prompts make small steps.
"""

from collections import deque
from collections.abc import Iterable, Mapping

from engine.policies.chunked_prefill import PrefillCursor
from engine.policies.policy import Policy
from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from engine.state.sequence import Sequence, State
from wire.messages import Phase

MAX_NAMED_FAILURES = 2
"""So many strikes prove it where a stage has named the step that it failed in."""
MAX_UNNAMED_FAILURES = 3
"""And so many where the stages were killed or silent, which may be anybody's fault."""


class Quarantine(Policy):
    """Feeds suspects, one to a step, until all of them are cleared or gone."""

    phase: Phase = "prefill"

    def __init__(self, suspects: Iterable[Sequence], num_stages: int, max_tokens: int) -> None:
        """`max_tokens` of a suspect are fed in one step. The gravest suspects come first."""
        self._open = sorted(suspects, key=lambda s: (-s.num_failures, s.arrived_at, s.sequence_id))
        self._unfed = deque(self._open)
        self._num_stages, self._max_tokens = num_stages, max_tokens
        self._cursor = PrefillCursor()
        self._num_fed = 0

    @property
    def max_in_flight(self) -> int:
        """One where a second loss may have to be told from a third by who was in flight."""
        is_grave = any(s.num_failures >= MAX_NAMED_FAILURES for s in self._open)
        return 1 if is_grave else self._num_stages

    def is_over(self) -> bool:
        """Whether nobody is left under suspicion."""
        self._open = [s for s in self._open if s.num_failures and s.state is not State.FINISHED]
        return not self._open

    def clear(self, sequences: Iterable[Sequence]) -> None:
        """These have sampled once more, and the stages are still there."""
        for sequence in sequences:
            sequence.num_failures = 0

    def next_micro_batch(self, pool: Pool, now: float) -> MicroBatch | None:  # noqa: ARG002
        """See `Policy.next_micro_batch`."""
        batch = MicroBatch()

        def next_admitted() -> Sequence | None:
            return None if batch.sequences else self._next_suspect(pool)

        self._cursor.fill(pool, batch, self._max_tokens, next_admitted)
        return batch if batch.sequences else None

    def _next_suspect(self, pool: Pool) -> Sequence | None:
        while self._unfed and self._unfed[0].state is State.FINISHED:
            self._unfed.popleft()
        if not self._unfed or not _make_room(pool, self._unfed[0]):
            return None
        sequence = self._unfed.popleft()
        # Some policies' micro-batches keep their members: spread these over all.
        sequence.micro_batch_index = self._num_fed % self._num_stages
        self._num_fed += 1
        return sequence


def record_failure(steps: Mapping[int, Iterable[Sequence]], failed_step: int) -> Sequence | None:
    """Give a strike to all rows of the failed step, or of all `steps` in flight if none is named.

    The one whose guilt that proves, if any.
    """
    is_told = failed_step in steps
    suspects = {
        sequence.sequence_id: sequence
        for step_id, rows in steps.items()
        for sequence in rows
        if sequence.state is not State.FINISHED and (not is_told or step_id == failed_step)
    }
    for sequence in suspects.values():
        sequence.num_failures += 1
    if len(suspects) != 1:
        return None
    (alone,) = suspects.values()
    return (
        alone
        if alone.num_failures >= (MAX_NAMED_FAILURES if is_told else MAX_UNNAMED_FAILURES)
        else None
    )


def _make_room(pool: Pool, sequence: Sequence) -> bool:
    """Room for all its tokens, if need be that of the cleared; False where it must be waited for.

    Only a cache that has become smaller needs that: all of them were in the last one together.
    """
    ledger = pool.ledger
    while ledger.blocks_for(len(sequence.token_ids)) > ledger.num_free:
        if not pool.ready:
            return False
        pool.preempt(max(pool.ready.values(), key=lambda s: (s.arrived_at, s.sequence_id)))
    return True
