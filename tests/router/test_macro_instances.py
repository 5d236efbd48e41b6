"""Mitosis: how macro instances split and merge."""

from hypothesis import given
from hypothesis import strategies as st

from router.decisions.macro_instances import MacroInstances
from router.decisions.messages import Handler


def sizes(macros: MacroInstances) -> list[int]:
    return [len(macro.members) for macro in macros]


def grown(count: int, lower: int = 3, upper: int = 6) -> MacroInstances:
    macros = MacroInstances(lower, upper)
    for number in range(count):
        macros.add(Handler(str(number)))
    return macros


def test_a_full_macro_instance_splits_and_the_old_one_is_filled_first() -> None:
    # The steps of the paper's figure, with N_l = 3 and N_u = 6.
    assert sizes(grown(6)) == [6]
    assert sizes(grown(7)) == [4, 3]
    assert sizes(grown(9)) == [6, 3]
    assert sizes(grown(12)) == [6, 6]
    assert sizes(grown(13)) == [6, 4, 3]


def test_two_that_fit_into_one_merge() -> None:
    macros = grown(7)
    macros.remove("0")
    assert sizes(macros) == [6]


def test_the_smallest_one_gives_up_members_down_to_the_lower_bound() -> None:
    macros = grown(11)  # 6 and 5
    assert sizes(macros) == [6, 5]
    shrinking = macros.to_shrink()
    assert shrinking is not None
    assert len(shrinking.members) == 5
    for _ in range(2):
        shrinking = macros.to_shrink()
        assert shrinking is not None
        macros.remove(shrinking.members[0].name)
    assert sizes(macros) == [6, 3]
    shrinking = macros.to_shrink()
    assert shrinking is not None
    assert len(shrinking.members) == 6, "the full one, because the other is at its lower bound"


def test_the_turn_stays_with_its_member_when_another_one_leaves() -> None:
    macros = grown(5)
    (macro,) = macros
    macro.use("3")
    macros.remove("1")
    assert next(macro.in_turn()).name == "3"
    assert [h.name for h in macro.in_turn()] == ["3", "4", "0", "2"]


@given(
    st.integers(1, 4),
    st.integers(0, 5),
    st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=120),
)
def test_no_handler_is_lost_or_doubled(
    lower: int, more: int, script: list[tuple[bool, int]]
) -> None:
    macros, expected = MacroInstances(lower, lower + more), set()
    for joins, number in script:
        name = str(number)
        if joins and name not in expected:
            macros.add(Handler(name))
            expected.add(name)
        elif not joins:
            macros.remove(name)
            expected.discard(name)
        members = [handler.name for macro in macros for handler in macro.members]
        assert sorted(members) == sorted(expected)
        assert all(0 < size <= lower + more for size in sizes(macros))
        assert len(macros) == len(expected)
