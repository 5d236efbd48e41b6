"""Sets of custom_ids behave like Python's sets."""

from hypothesis import given
from hypothesis import strategies as st

from server.batches.storage.custom_ids import CustomIds


def ids_of(*custom_ids: str) -> CustomIds:
    """A set of these ids."""
    ids = CustomIds()
    for custom_id in custom_ids:
        ids.add(custom_id)
    return ids


def test_each_of_many_ids_is_found_and_no_other() -> None:
    # Enough ids for every value of a digest's last byte.
    ids = ids_of(*(f"r{i}" for i in range(3000)))
    found = ids.sorted()
    assert len(ids) == len(found) == 3000
    assert all(f"r{i}" in found for i in range(3000))
    assert not any(f"s{i}" in found for i in range(3000))


def test_nothing_is_in_an_empty_set() -> None:
    assert "r0" not in ids_of().sorted()
    assert ids_of().repetitions() == []


def test_an_id_added_later_is_not_in_an_earlier_copy() -> None:
    ids = ids_of("a")
    before = ids.sorted()
    ids.add("b")
    assert "b" not in before
    assert "b" in ids.sorted()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=2)))
def test_repetitions_are_ids_that_were_added_before(custom_ids: list[str]) -> None:
    expected = [i for i, custom_id in enumerate(custom_ids) if custom_id in custom_ids[:i]]
    assert ids_of(*custom_ids).repetitions() == expected
