"""Preemption: which sequence is preempted when a row must grow, and which never is."""

from hypothesis import given
from hypothesis import strategies as st

from engine.policies.preemption import reserve_blocks
from engine.state.pool import Pool
from engine.state.sequence import Sequence, State
from tests.engine.pools import ids, make_sequence, make_sequences


def full_pool(arrivals: list[float], spare_blocks: int = 0) -> Pool:
    """Ready sequences with one block of four tokens each; all of them need another block."""
    ready = [
        (make_sequence(i, 4, arrived_at=arrived_at), 1) for i, arrived_at in enumerate(arrivals)
    ]
    return make_sequences(ready, spare_blocks)


def waiting(pool: Pool) -> list[int]:
    """The ids of preempted sequences."""
    return ids(list(pool.waiting))


def test_with_a_free_block_none_is_preempted() -> None:
    pool = full_pool([0, 1, 2], spare_blocks=1)
    assert reserve_blocks(pool, pool.ready[1], [])
    assert (waiting(pool), len(pool.ready[1].block_table)) == ([], 2)


def test_the_sequence_that_arrived_last_is_preempted() -> None:
    pool = full_pool([0, 5, 3])
    assert reserve_blocks(pool, pool.ready[2], [])
    assert (waiting(pool), len(pool.ready[2].block_table)) == ([1], 2)


def test_offline_sequences_are_preempted_before_online_ones() -> None:
    ready = [(make_sequence(i, 4, offline=i == 0), 1) for i in range(3)]
    pool = make_sequences(ready)
    assert reserve_blocks(pool, pool.ready[1], [])
    assert waiting(pool) == [0]


def test_of_simultaneous_arrivals_the_highest_id_is_preempted() -> None:
    pool = full_pool([0, 0, 0])
    assert reserve_blocks(pool, pool.ready[0], [])
    assert waiting(pool) == [2]


def test_a_row_already_taken_is_not_preempted() -> None:
    pool = full_pool([0, 1, 2])
    assert reserve_blocks(pool, pool.ready[0], taken=[pool.ready[2]])
    assert waiting(pool) == [1]


def test_a_sequence_in_flight_is_not_preempted() -> None:
    pool = full_pool([0, 1, 2])
    in_flight = pool.ready[2]
    pool.launch([in_flight], [1])
    assert reserve_blocks(pool, pool.ready[0], [])
    assert (waiting(pool), in_flight.state) == ([1], State.RUNNING)


def test_the_youngest_is_preempted_itself_rather_than_an_older_one() -> None:
    pool = full_pool([0, 1, 2])
    youngest = pool.ready[2]
    assert not reserve_blocks(pool, youngest, [])
    assert (waiting(pool), youngest.state, pool.ledger.num_free) == ([2], State.WAITING, 1)


def test_the_only_idle_sequence_keeps_its_blocks_and_waits_for_those_in_flight() -> None:
    pool = full_pool([0, 1, 2])
    only = pool.ready[2]
    pool.launch([pool.ready[0], pool.ready[1]], [1, 1])
    assert not reserve_blocks(pool, only, [])
    assert (waiting(pool), only.state, len(only.block_table)) == ([], State.READY, 1)


def test_the_only_sequence_not_taken_keeps_its_blocks_and_waits() -> None:
    pool = full_pool([0, 1])
    assert not reserve_blocks(pool, pool.ready[1], taken=[pool.ready[0]])
    assert (waiting(pool), len(pool.ready[1].block_table)) == ([], 1)


def test_a_preempted_sequence_keeps_its_tokens_and_waits_before_new_ones() -> None:
    pool = full_pool([0, 1])
    pool.add(make_sequence(7, arrived_at=-1.0))
    victim = pool.ready[1]
    assert reserve_blocks(pool, pool.ready[0], [])
    assert waiting(pool) == [1, 7]
    assert (victim.num_generated, victim.num_unplanned, list(victim.block_table)) == (1, 5, [])
    assert (pool.counters.preemptions, pool.counters.recomputed_tokens) == (1, 0)
    pool.finish(pool.ready[0])
    assert pool.admit(victim)
    assert pool.counters.recomputed_tokens == 4


@given(
    arrivals=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    moves=st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=20),
)
def test_preempted_sequences_are_idle_not_older_and_never_the_oldest(
    arrivals: list[int], moves: list[tuple[int, bool]]
) -> None:
    pool = full_pool([float(arrived_at) for arrived_at in arrivals])
    oldest = min(pool.live.values(), key=age)
    for index, is_launched in moves:
        idle = list(pool.ready.values())
        if not idle:
            break
        sequence = idle[index % len(idle)]
        made = reserve_blocks(pool, sequence, [])
        assert made == (len(sequence.block_table) == 2)
        victims = [s for s in idle if s.state is State.WAITING]
        assert all(age(victim) >= age(sequence) for victim in victims)
        assert ids(victims) == ids([v for v in idle if v.sequence_id not in pool.ready])
        assert oldest.sequence_id in pool.live
        if made and is_launched:
            pool.launch([sequence], [1])
        held = [block for s in pool.live.values() for block in s.block_table]
        assert len(set(held)) == len(held) == pool.ledger.num_used


def age(sequence: Sequence) -> tuple[float, int]:
    """A key that is greater for younger sequences."""
    return sequence.arrived_at, sequence.sequence_id
