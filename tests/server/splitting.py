"""Splitting a text into pieces, as a model's tokens would."""

from itertools import pairwise

from hypothesis import strategies as st


def cut(text: str, places: list[int]) -> list[str]:
    """The text in pieces, cut at these places."""
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(ends)]


def texts_of(*words: str) -> st.SearchStrategy[str]:
    """Texts in which these words are frequent, whole and in parts."""
    parts = st.sampled_from(words) | st.text("<>{}[]\"':, \n\\abc1é€", max_size=4)
    return st.lists(parts, max_size=16).map("".join)


PLACES = st.lists(st.integers(0, 400), max_size=12)
