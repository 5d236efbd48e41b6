"""Poison-request quarantine: finds a request that makes the stages fail, and rejects it.

Such a request would make the stages fail after every restart, and block all other requests.
Therefore each sequence that was in flight when the stages were lost becomes a suspect with a
failure count. The next incarnation of the pipeline first feeds the suspects, one per step, with all
their tokens so far. A suspect that samples one more token has passed the point of failure and is
cleared. A sequence that is the only suspect in its second failure (in its third, if no stage has
reported the failed step) is the poison request and is answered with an error. The overhead is
small, because the sequences in flight must be recomputed in any case.
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
"""Failures that prove a poison request if a stage has reported the step in which it failed."""
MAX_UNNAMED_FAILURES = 3
"""Failures that prove one if the stages were killed or silent, which can have other causes."""


class Quarantine(Policy):
    """Feeds suspects, one per step, until all of them are cleared or finished."""

    phase: Phase = "prefill"

    def __init__(self, suspects: Iterable[Sequence], num_stages: int, max_tokens: int) -> None:
        """Feed up to `max_tokens` of a suspect per step, those with the most failures first."""
        self._open = sorted(suspects, key=lambda s: (-s.num_failures, s.arrived_at, s.sequence_id))
        self._unfed = deque(self._open)
        self._num_stages, self._max_tokens = num_stages, max_tokens
        self._cursor = PrefillCursor()
        self._num_fed = 0

    @property
    def max_in_flight(self) -> int:
        """1 if one more failure proves a suspect, which must then be alone in flight.

        This is decided as if no stage reported the failed step (`MAX_UNNAMED_FAILURES`).
        """
        is_decisive = any(s.num_failures >= MAX_NAMED_FAILURES for s in self._open)
        return 1 if is_decisive else self._num_stages

    def is_over(self) -> bool:
        """Whether all suspects are cleared or finished."""
        self._open = [s for s in self._open if s.num_failures and s.state is not State.FINISHED]
        return not self._open

    def clear(self, sequences: Iterable[Sequence]) -> None:
        """Clear sequences that have sampled one more token."""
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
        if not self._unfed or not _free_blocks(pool, self._unfed[0]):
            return None
        sequence = self._unfed.popleft()
        # Some policies keep the members of a micro-batch together: spread the suspects evenly.
        sequence.micro_batch_index = self._num_fed % self._num_stages
        self._num_fed += 1
        return sequence


def record_failure(steps: Mapping[int, Iterable[Sequence]], failed_step: int) -> Sequence | None:
    """Count a failure for the rows of the failed step; if unknown, of all `steps` in flight.

    Returns the poison request if this failure proves one.
    """
    is_named = failed_step in steps
    suspects = {
        sequence.sequence_id: sequence
        for step_id, rows in steps.items()
        for sequence in rows
        if sequence.state is not State.FINISHED and (not is_named or step_id == failed_step)
    }
    for sequence in suspects.values():
        sequence.num_failures += 1
    if len(suspects) != 1:
        return None
    (suspect,) = suspects.values()
    max_failures = MAX_NAMED_FAILURES if is_named else MAX_UNNAMED_FAILURES
    return suspect if suspect.num_failures >= max_failures else None


def _free_blocks(pool: Pool, sequence: Sequence) -> bool:
    """Free enough blocks for all tokens of a suspect; False if steps in flight hold them.

    Cleared sequences are preempted if necessary, the youngest first. This happens only if the KV
    cache has become smaller: all suspects were in the previous cache together.
    """
    while pool.blocks_to_admit(sequence) > pool.ledger.num_free:
        if not pool.ready:
            return False
        pool.preempt(max(pool.ready.values(), key=lambda s: (s.arrived_at, s.sequence_id)))
    return True
