"""Markers in a growing text."""

import pytest

from server.chat.markers import find_marker


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, False)),
        ("abc", (3, False)),
        ("ab<", (2, False)),
        ("ab<tag", (2, False)),
        ("ab<tag>c<tag>", (2, True)),
        ("ab<tab<ta", (6, False)),
        ("<tag", (0, False)),
        ("<tagx", (5, False)),
    ],
)
def test_the_first_marker_is_found_or_its_beginning_at_the_end(
    text: str, expected: tuple[int, bool]
) -> None:
    assert find_marker(text, "<tag>") == expected
