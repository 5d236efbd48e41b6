"""Bad words, against a twin that searches all generated tokens."""

from hypothesis import given
from hypothesis import strategies as st

from workers.sampling.bad_words import BadWords

Tokens = st.integers(0, 3)
Words = st.lists(st.lists(Tokens, min_size=1, max_size=4).map(tuple), max_size=6)


@given(words=Words, prompt=st.lists(Tokens, max_size=6), output=st.lists(Tokens, max_size=30))
def test_what_would_complete_a_word_is_banned_and_nothing_else(
    words: list[tuple[int, ...]], prompt: list[int], output: list[int]
) -> None:
    bad_words = BadWords(words, list(prompt))
    tokens = list(prompt)
    for token_id in output:
        expected = {
            word[-1]
            for word in words
            if tuple(tokens[len(tokens) - len(word) + 1 :]) == word[:-1]
            and len(word) <= len(tokens) + 1
        }
        assert set(bad_words.banned()) == expected
        bad_words.append(token_id)
        tokens.append(token_id)
