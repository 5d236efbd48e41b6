"""Filler text: as many tokens as were asked for, by the server's own count."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.filler_text import WORDS, FillerText, all_words


def count(text: str, tokens_per_word: float, around: float) -> float:
    """The tokens of a text under a tokenizer of equal words."""
    return around + tokens_per_word * len(text.split())


def test_words_are_different_and_plain() -> None:
    assert len(set(WORDS)) == len(WORDS) == 64
    assert all(word.isalpha() and word.islower() for word in WORDS)


@given(st.floats(0.5, 5.0), st.integers(0, 40), st.integers(1, 2000))
def test_a_text_has_about_as_many_tokens_as_ids(
    per_word: float, around: int, num_tokens: int
) -> None:
    filler = FillerText.measured(
        round(count(all_words(1), per_word, around)), round(count(all_words(2), per_word, around))
    )
    ids = random.Random(0).choices(range(3, 768), k=num_tokens)
    expected = max(num_tokens, around + per_word)
    assert count(filler.text(ids), per_word, around) == pytest.approx(
        expected, abs=per_word + 0.02 * num_tokens
    )


def test_prompts_that_share_a_prefix_of_ids_share_one_of_words() -> None:
    rng = random.Random(1)
    prefix = rng.choices(range(3, 768), k=300)
    filler = FillerText(tokens_per_word=2.5, tokens_around=7.0)
    texts = [filler.text([*prefix, *rng.choices(range(3, 768), k=100)]).split() for _ in range(2)]
    shared = [a == b for a, b in zip(*texts, strict=True)]
    assert all(shared[: round(0.74 * len(shared))])
    assert not all(shared)


def test_a_server_that_counts_nothing_leaves_a_token_for_each_word() -> None:
    assert FillerText.measured(0, 0) == FillerText()
    assert len(FillerText().text(range(3, 103)).split()) == 100
