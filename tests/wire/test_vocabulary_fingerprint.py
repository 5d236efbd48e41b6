"""The fingerprint: the same for the same vocabulary, another for any other."""

import pytest

from wire.vocabulary_fingerprint import fingerprint


def test_a_fingerprint_is_sixteen_hex_digits_and_never_changes() -> None:
    assert fingerprint({"a": 0, "b": 1}) == "a010d841c0f55ced"


def test_the_order_in_the_mapping_does_not_matter() -> None:
    assert fingerprint({"a": 0, "b": 1}) == fingerprint({"b": 1, "a": 0})


@pytest.mark.parametrize(
    "other", [{}, {"a": 0}, {"a": 1, "b": 0}, {"a": 0, "c": 1}, {"a": 0, "b": 1, "c": 2}]
)
def test_another_vocabulary_has_another_fingerprint(other: dict[str, int]) -> None:
    assert fingerprint(other) != fingerprint({"a": 0, "b": 1})


def test_no_token_can_pass_for_two() -> None:
    assert fingerprint({"a": 0, "b": 1}) != fingerprint({"a1 1 b": 0})


def test_half_a_character_is_a_token_like_any_other() -> None:
    assert len(fingerprint({"\ud83d": 0, "🙂": 1, "": 2})) == 16
