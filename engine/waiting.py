"""The waiting queue: who is admitted next.

First those that were pre-empted, then online sequences in the order they came, then offline ones:
in that order too, or the longest predicted output first, so that a run does not end with a few long
ones in an empty pipeline (PAPERS.md, section 2 g). A long sequence overtakes only what came within
(difference in tokens) / `AGING_TOKENS_PER_S` before it, which bounds every wait.
"""

from collections.abc import Iterator

from sortedcontainers import SortedDict

from engine.sequence import Sequence

AGING_TOKENS_PER_S = 2.0

_PREEMPTED, _ONLINE, _OFFLINE = range(3)
_Key = tuple[int, float, float, int]


class WaitingQueue:
    """Sequences without KV, in the order of admission; all operations are O(log n)."""

    def __init__(self, *, longest_first: bool = False) -> None:
        self._longest_first = longest_first
        self._keys: dict[int, _Key] = {}
        self._sequences: SortedDict[_Key, Sequence] = SortedDict()

    def add(self, sequence: Sequence) -> None:
        """A new sequence."""
        lane, rank = _ONLINE, 0.0
        if sequence.submit.offline:
            lane = _OFFLINE
            if self._longest_first:
                rank = sequence.arrived_at * AGING_TOKENS_PER_S - sequence.predicted_len
        self._insert(sequence, lane, rank)

    def put_back(self, sequence: Sequence) -> None:
        """A sequence that was pre-empted."""
        self._insert(sequence, _PREEMPTED, 0.0)

    def remove(self, sequence: Sequence) -> None:
        """It was admitted or has ended. Raises `KeyError` when it is not here."""
        del self._sequences[self._keys.pop(sequence.sequence_id)]

    def first(self) -> Sequence | None:
        """The one to admit next."""
        return self._sequences.peekitem(0)[1] if self._sequences else None

    def online_wait_s(self, now: float) -> float:
        """How long the next one has waited, 0 when nobody waits for it."""
        first = self.first()
        return 0.0 if first is None or first.submit.offline else now - first.arrived_at

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, sequence_id: int) -> Sequence | None:
        """The waiting sequence with this id."""
        key = self._keys.get(sequence_id)
        return None if key is None else self._sequences[key]

    def _insert(self, sequence: Sequence, lane: int, rank: float) -> None:
        key = (lane, rank, sequence.arrived_at, sequence.sequence_id)
        self._keys[sequence.sequence_id] = key
        self._sequences[key] = sequence
