"""The waiting queue, against a reference that sorts lists."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from engine.state.sequence import Sequence
from engine.state.waiting import WaitingQueue
from tests.engine.pools import ids, make_sequence, point

Moves = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.booleans(), st.integers(0, 4), st.integers(1, 6)),
        st.tuples(st.just("remove"), st.integers(0, 20)),
        st.tuples(st.just("put back"), st.integers(0, 20)),
        st.tuples(st.just("expect"), st.integers(0, 20), st.integers(1, 6)),
    ),
    max_size=40,
)


@dataclass
class Reference:
    """The same queue as three lists, as in its docstring."""

    preempted: list[Sequence] = field(default_factory=list)
    online: list[Sequence] = field(default_factory=list)
    offline: list[Sequence] = field(default_factory=list)

    def in_order(self) -> list[Sequence]:
        preempted_offline = [s for s in self.preempted if s.submit.offline]
        preempted_online = [s for s in self.preempted if not s.submit.offline]
        parts = (preempted_online, self.online, preempted_offline, self.offline)
        return [s for part in parts for s in sorted(part, key=by_arrival)]

    def longest_first(self) -> list[Sequence]:
        return sorted(self.offline, key=lambda s: (-s.predicted_len, *by_arrival(s)))

    def with_critical_first(self, critical_len: float) -> list[Sequence]:
        critical = [s for s in self.longest_first() if s.predicted_len >= critical_len]
        first = Reference(self.preempted, self.online).in_order()
        return [*first, *critical, *(s for s in self.in_order() if s not in first + critical)]


def by_arrival(sequence: Sequence) -> tuple[float, int]:
    """The arrival order, with the lower id first among simultaneous ones."""
    return sequence.arrived_at, sequence.sequence_id


def after(moves: list[tuple[Any, ...]]) -> tuple[WaitingQueue, Reference, list[Sequence]]:
    """A queue and its reference after the moves, and the sequences that have left."""
    queue, reference, left = WaitingQueue(), Reference(), list[Sequence]()
    for number, move in enumerate(moves):
        match move:
            case ("add", offline, arrived_at, predicted_len):
                # Later arrivals have lower ids, so that arrival and id are independent.
                sequence = make_sequence(
                    100 - number,
                    arrived_at=float(arrived_at),
                    predicted_len=predicted_len,
                    offline=offline,
                )
                queue.add(sequence)
                (reference.offline if offline else reference.online).append(sequence)
            case ("remove", index) if waiting := reference.in_order():
                sequence = waiting[index % len(waiting)]
                queue.remove(sequence)
                for part in (reference.preempted, reference.online, reference.offline):
                    if sequence in part:
                        part.remove(sequence)
                left.append(sequence)
            case ("put back", index) if left:
                sequence = left.pop(index % len(left))
                queue.put_back(sequence)
                reference.preempted.append(sequence)
            case ("expect", index, predicted_len) if waiting := reference.in_order():
                sequence = waiting[index % len(waiting)]
                with queue.moving(sequence):
                    sequence.expected = point(predicted_len)
    return queue, reference, left


@given(moves=Moves)
def test_online_sequences_go_before_offline_ones_and_the_preempted_first(
    moves: list[tuple[Any, ...]],
) -> None:
    queue, reference, _ = after(moves)
    assert list(queue) == reference.in_order()
    assert len(queue) == len(reference.in_order())
    assert queue.first() is next(iter(reference.in_order()), None)


@given(moves=Moves)
def test_waiting_sequences_are_found_and_removed_ones_are_not(
    moves: list[tuple[Any, ...]],
) -> None:
    queue, reference, left = after(moves)
    assert [queue.find(i) for i in ids(reference.in_order())] == reference.in_order()
    assert [queue.find(i) for i in ids(left)] == [None] * len(left)
    assert queue.find(1000) is None


@given(moves=Moves, critical_len=st.one_of(st.integers(0, 7), st.just(float("inf"))))
def test_critical_sequences_come_before_other_offline_ones_longest_first(
    moves: list[tuple[Any, ...]], critical_len: float
) -> None:
    queue, reference, _ = after(moves)
    assert list(queue.with_critical_first(critical_len)) == reference.with_critical_first(
        critical_len
    )


@given(moves=Moves, count=st.integers(1, 8))
def test_a_sample_by_length_represents_all_new_offline_sequences(
    moves: list[tuple[Any, ...]], count: int
) -> None:
    queue, reference, _ = after(moves)
    sorted_once, begin = reference.longest_first(), 0
    for sequence, width in queue.by_length(count):
        assert sequence in sorted_once[begin : begin + width]
        assert width <= max(1, len(sorted_once) // count)
        begin += width
    assert begin == len(sorted_once)


@example(
    moves=[
        *(("add", offline, 0, 1) for offline in (False, True)),
        *(("remove", 0), ("remove", 0), ("put back", 0), ("put back", 0)),
    ],
    now=4,
)
@given(moves=Moves, now=st.integers(4, 9))
def test_the_wait_is_that_of_the_first_online_sequence(
    moves: list[tuple[Any, ...]], now: int
) -> None:
    queue, reference, _ = after(moves)
    first = next((s for s in reference.in_order() if not s.submit.offline), None)
    expected = 0.0 if first is None else now - first.arrived_at
    assert queue.online_wait_s(float(now)) == expected


def test_the_longest_is_a_group_of_one_and_short_ones_represent_many() -> None:
    queue = WaitingQueue()
    for i in range(16):
        queue.add(make_sequence(i, predicted_len=100 - i, offline=True))
    sample = [(s.sequence_id, width) for s, width in queue.by_length(4)]
    # Groups 0 | 1 | 2..3 | 4..7 | 8..11 | 12..15, each represented by its middle.
    assert sample == [(0, 1), (1, 1), (3, 2), (6, 4), (10, 4), (14, 4)]


def test_of_equal_lengths_the_earlier_arrival_comes_first() -> None:
    queue = WaitingQueue()
    for i, arrived_at in enumerate([2.0, 1.0, 3.0]):
        queue.add(make_sequence(i, arrived_at=arrived_at, offline=True))
    assert ids(list(queue.with_critical_first(1.0))) == [1, 0, 2]


def test_the_last_group_has_no_more_than_the_remaining_sequences() -> None:
    queue = WaitingQueue()
    for i in range(5):
        queue.add(make_sequence(i, predicted_len=100 - i, offline=True))
    # Groups 0 | 1 | 2..3 | 4, although a group may have two.
    sample = [(s.sequence_id, width) for s, width in queue.by_length(2)]
    assert sample == [(0, 1), (1, 1), (3, 2), (4, 1)]


def test_a_preempted_sequence_is_not_admitted_by_length() -> None:
    queue = WaitingQueue()
    long, short = (make_sequence(i, predicted_len=9 - i, offline=True) for i in range(2))
    queue.add(long)
    queue.add(short)
    queue.remove(long)
    queue.put_back(long)
    assert queue.by_length(2) == [(short, 1)]
    queue.remove(long)
    assert list(queue.with_critical_first(1.0)) == [short]
