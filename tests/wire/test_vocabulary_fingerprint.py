"""The fingerprint: equal for equal vocabularies, different for all others."""

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


def test_one_token_differs_from_two_tokens() -> None:
    assert fingerprint({"a": 0, "b": 1}) != fingerprint({"a1 1 b": 0})


def test_a_part_of_a_character_is_a_valid_token() -> None:
    assert len(fingerprint({"\ud83d": 0, "🙂": 1, "": 2})) == 16
