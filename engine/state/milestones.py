"""Milestones: what happens to traced sequences, for the spans of their requests.

Sequences that are not traced cost one look at an empty set per step.
"""

from collections.abc import Iterable

from engine.state.sequence import Sequence
from wire.messages import Milestone, MilestoneKind


class Milestones:
    """Notes milestones of traced sequences; `take` stamps those of one event with its time."""

    def __init__(self) -> None:
        self._unscheduled: set[int] = set()
        self._unsampled: set[int] = set()  # fed since the KV was empty, without a new token
        self._noted: list[tuple[int, MilestoneKind]] = []

    def add(self, sequence: Sequence) -> None:
        """A sequence begins to wait."""
        if sequence.submit.traced:
            self._unscheduled.add(sequence.sequence_id)

    def schedule(self, sequences: Iterable[Sequence]) -> None:
        """Tokens of these sequences are fed."""
        self._move(sequences, self._unscheduled, "scheduled")

    def sample(self, sequences: Iterable[Sequence]) -> None:
        """These sequences have sampled a token."""
        self._move(sequences, self._unsampled, "sampled")

    def lose_kv(self, sequence: Sequence, kind: MilestoneKind) -> None:
        """The sequence waits again, because its KV was lost."""
        if sequence.submit.traced:
            self._unsampled.discard(sequence.sequence_id)
            self._unscheduled.add(sequence.sequence_id)
            self._noted.append((sequence.sequence_id, kind))

    def end(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended."""
        if sequence.submit.traced:
            self._unscheduled.discard(sequence.sequence_id)
            self._unsampled.discard(sequence.sequence_id)

    def take(self, now: float) -> list[Milestone]:
        """The milestones since the last call, all of which happened at `now` (seconds)."""
        if not self._noted:
            return []
        noted, self._noted = self._noted, []
        return [Milestone(sequence_id, kind, now) for sequence_id, kind in noted]

    def _move(self, sequences: Iterable[Sequence], source: set[int], kind: MilestoneKind) -> None:
        if not source:
            return
        for sequence in sequences:
            if sequence.sequence_id in source:
                source.remove(sequence.sequence_id)
                if kind == "scheduled":
                    self._unsampled.add(sequence.sequence_id)
                self._noted.append((sequence.sequence_id, kind))
