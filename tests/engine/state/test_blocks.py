"""The block ledger: no block is in two tables, and none is lost."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.state.blocks import BlockLedger


@pytest.mark.parametrize(("num_tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_every_four_tokens_or_a_part_of_them_need_a_block(num_tokens: int, blocks: int) -> None:
    assert BlockLedger(10, 4).blocks_for(num_tokens) == blocks


def test_only_missing_blocks_are_taken() -> None:
    ledger = BlockLedger(10, 4)
    table = array("i")
    assert ledger.missing(table, 6) == 2
    assert ledger.extend(table, 6)
    assert ledger.extend(table, 8)
    assert (len(table), ledger.num_used, ledger.missing(table, 8)) == (2, 2, 0)
    assert ledger.extend(table, 9)
    assert (len(table), ledger.num_used, ledger.num_free) == (3, 3, 7)


def test_a_table_that_is_long_enough_does_not_change() -> None:
    ledger = BlockLedger(2, 4)
    table = array("i")
    ledger.extend(table, 8)
    before = table[:]
    assert ledger.missing(table, 3) == 0
    assert ledger.extend(table, 3)
    assert ledger.extend(table, 0)
    assert table == before


def test_too_few_blocks_change_nothing() -> None:
    ledger = BlockLedger(3, 4)
    first, second = array("i"), array("i")
    assert ledger.extend(first, 8)
    before = first[:]
    assert not ledger.extend(second, 5)
    assert not ledger.extend(first, 17)
    assert (list(second), first, ledger.num_free) == ([], before, 1)
    assert ledger.extend(second, 4)
    assert not ledger.extend(first, 9)


def test_the_last_block_can_be_taken() -> None:
    ledger = BlockLedger(3, 4)
    table = array("i")
    assert ledger.extend(table, 12)
    assert sorted(table) == [0, 1, 2]
    assert ledger.num_free == 0


def test_a_freed_block_is_used_next() -> None:
    ledger = BlockLedger(100, 1)
    table, other = array("i"), array("i")
    ledger.extend(table, 3)
    assert list(table) == [0, 1, 2]
    ledger.free(table)
    assert (list(table), ledger.num_used) == ([], 0)
    ledger.extend(other, 3)
    assert list(other) == [0, 1, 2]


Moves = st.lists(
    st.tuples(st.integers(0, 4), st.one_of(st.none(), st.integers(0, 60))), max_size=40
)

LETTERS = st.text("abcdef", min_size=1, max_size=3)


@given(num_blocks=st.integers(0, 20), block_size=st.integers(1, 5), moves=Moves)
def test_blocks_are_conserved_and_never_in_two_tables(
    num_blocks: int, block_size: int, moves: list[tuple[int, int | None]]
) -> None:
    ledger = BlockLedger(num_blocks, block_size)
    tables = [array("i") for _ in range(5)]
    for index, num_tokens in moves:
        table = tables[index]
        before, free = table[:], ledger.num_free
        if num_tokens is None:
            ledger.free(table)
            assert list(table) == []
        else:
            lacks = max(0, -(-num_tokens // block_size) - len(table))
            assert ledger.missing(table, num_tokens) == lacks
            assert ledger.extend(table, num_tokens) == (lacks <= free)
            assert table[: len(before)] == before
            assert len(table) == len(before) + (lacks if lacks <= free else 0)
        held = [block for t in tables for block in t]
        assert len(set(held)) == len(held) == ledger.num_used
        assert set(held) <= set(range(num_blocks))
        assert ledger.num_used + ledger.num_free == num_blocks
    for table in tables:
        ledger.free(table)
    everything = array("i")
    assert ledger.extend(everything, num_blocks * block_size)
    assert sorted(everything) == list(range(num_blocks))


@given(
    num_blocks=st.integers(1, 12),
    moves=st.lists(
        st.tuples(
            st.integers(0, 4), st.sampled_from(["take", "register", "find", "free"]), LETTERS
        ),
        max_size=60,
    ),
)
def test_shared_blocks_are_conserved_and_keep_their_keys_while_they_are_held(
    num_blocks: int, moves: list[tuple[int, str, str]]
) -> None:
    ledger = BlockLedger(num_blocks, 1)
    tables = [array("i") for _ in range(5)]
    keys: dict[int, bytes] = {}  # of held blocks, as registered
    for index, move, text in moves:
        table = tables[index]
        if move == "take":
            ledger.extend(table, len(table) + len(text))
        elif move == "register" and table:
            block, key = table[-1], text.encode()
            if block not in keys and not ledger.find([key]):
                keys[block] = key
                ledger.register(block, key)
        elif move == "find":
            found = ledger.find([letter.encode() for letter in text])
            own = [block for block in found if block not in table]
            idle = len(own) - ledger.num_held(own)
            before = ledger.num_free
            ledger.hold(table, own)
            assert ledger.num_free == before - idle
            keys |= {b: letter.encode() for b, letter in zip(found, text, strict=False)}
        elif move == "free":
            ledger.free(table)
        held = {block for t in tables for block in t}
        keys = {block: key for block, key in keys.items() if block in held}
        assert ledger.num_used == len(held)
        assert ledger.num_used + ledger.num_free == num_blocks
        for block, key in keys.items():
            assert list(ledger.find([key])) == [block]
    for table in tables:
        ledger.free(table)
    assert ledger.num_free == num_blocks
    everything = array("i")
    assert ledger.extend(everything, num_blocks)
    assert sorted(everything) == list(range(num_blocks))
    assert ledger.num_cached == 0
