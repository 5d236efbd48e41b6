"""The waiting queue: the order of admission.

Online sequences come first: preempted ones, then the others, each in order of arrival. Offline
sequences follow in the same way, but new ones with a common prefix are neighbours (see
`engine.state.prefix_cache`): they stand where the first of them does. New offline sequences can
also be admitted by length: a sequence that is expected to take longer than all other work comes
first, the longest of them at the front (docs/papers.md, section 2 g).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, takewhile

from sortedcontainers import SortedDict

from engine.state.sequence import Sequence

_PREEMPTED, _ONLINE, _PREEMPTED_OFFLINE, _OFFLINE = range(4)
_Key = tuple[float, float, tuple[int, ...], float, int]
_LengthKey = tuple[float, float, int]


class WaitingQueue:
    """Sequences without KV, in order of admission; add, move and remove are O(log n)."""

    def __init__(self) -> None:
        self._keys: dict[int, _Key] = {}
        self._in_order: SortedDict[_Key, Sequence] = SortedDict()
        self._by_length: SortedDict[_LengthKey, Sequence] = SortedDict()

    def add(self, sequence: Sequence) -> None:
        """Add a new sequence."""
        if sequence.submit.offline:
            self._by_length[_length_key(sequence)] = sequence
        self._insert(sequence, _OFFLINE if sequence.submit.offline else _ONLINE)

    def put_back(self, sequence: Sequence) -> None:
        """Add a sequence that was preempted."""
        self._insert(sequence, _PREEMPTED_OFFLINE if sequence.submit.offline else _PREEMPTED)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence that was admitted or ended; raises `KeyError` if it is not queued."""
        key = self._keys.pop(sequence.sequence_id)
        del self._in_order[key]
        self._by_length.pop(_length_key(sequence), None)

    @contextmanager
    def moving(self, sequence: Sequence) -> Iterator[None]:
        """Context in which the expected length of a waiting sequence may change."""
        by_length = self._by_length.pop(_length_key(sequence), None)
        yield
        if by_length is not None:
            self._by_length[_length_key(sequence)] = sequence

    def find(self, sequence_id: int) -> Sequence | None:
        """The waiting sequence with this id, or None."""
        key = self._keys.get(sequence_id)
        return None if key is None else self._in_order[key]

    def first(self) -> Sequence | None:
        """The next sequence in order, or None if the queue is empty."""
        return self._in_order.peekitem(0)[1] if self._in_order else None

    def by_length(self, count: int) -> list[tuple[Sequence, int]]:
        """Sample the new offline sequences, longest first; returns (sequence, group size) pairs.

        A pair has the middle sequence of a group. The groups have 1, 1, 2, 4, ... sequences, up to
        1 / `count` of all.
        """
        number, chosen, begin = len(self._by_length), [], 0
        most = max(1, number // count)
        while begin < number:
            width = min(max(1, begin), most, number - begin)
            chosen.append((self._by_length.values()[begin + width // 2], width))
            begin += width
        return chosen

    def with_critical_first(self, critical_len: float) -> Iterator[Sequence]:
        """All sequences in order, but with critical ones first among the new offline ones.

        Critical sequences are predicted to generate `critical_len` tokens or more; the longest
        comes first.
        """
        in_order = iter(self._in_order.items())
        head: list[Sequence] = []
        for (queue, *_), sequence in in_order:
            if queue == _OFFLINE:
                head.append(sequence)
                break
            yield sequence
        yield from takewhile(lambda s: s.predicted_len >= critical_len, self._by_length.values())
        rest = chain(head, (sequence for _, sequence in in_order))
        yield from (sequence for sequence in rest if sequence.predicted_len < critical_len)

    def online_wait_s(self, now: float) -> float:
        """Seconds that the first sequence has waited, or 0 if it is not online."""
        first = self.first()
        return 0.0 if first is None or first.submit.offline else now - first.arrived_at

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._in_order.values())

    def __len__(self) -> int:
        return len(self._keys)

    def _insert(self, sequence: Sequence, queue: int) -> None:
        arrived_at = sequence.arrived_at
        place = sequence.prefix_order if queue == _OFFLINE else (arrived_at, ())
        key = (queue, *place, arrived_at, sequence.sequence_id)
        self._keys[sequence.sequence_id] = key
        self._in_order[key] = sequence


def _length_key(sequence: Sequence) -> _LengthKey:
    return (-sequence.predicted_len, sequence.arrived_at, sequence.sequence_id)
