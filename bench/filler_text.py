"""Filler text: random words in place of random token ids, for servers whose tokenizer is unknown.

How many tokens a word has depends on the tokenizer; the server's own count of two prompts tells.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Common words: one token each in most large vocabularies, together with the space before them.
WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world"),
    *("school", "state", "family", "student", "group", "country", "problem", "hand", "part"),
    *("place", "case", "week", "company", "system", "program", "question", "work", "number"),
    *("night", "point", "home", "water", "room", "mother", "area", "money", "story", "fact"),
    *("month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue"),
    *("side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game"),
    *("line", "end", "member", "law", "car"),
)


@dataclass(frozen=True, slots=True)
class FillerText:
    """How many tokens a word has, and how many a prompt has besides (a chat template's)."""

    tokens_per_word: float = 1.0
    tokens_around: float = 0.0

    @classmethod
    def measured(cls, tokens_of_once: int, tokens_of_twice: int) -> "FillerText":
        """From the tokens of all words, once and twice."""
        per_word = (tokens_of_twice - tokens_of_once) / len(WORDS)
        if per_word <= 0:  # the server does not count what it was sent
            return cls()
        return cls(per_word, max(0.0, tokens_of_once - per_word * len(WORDS)))

    def text(self, token_ids: Sequence[int]) -> str:
        """A text of about as many tokens as there are ids.

        Each word is that of an id, so prompts that share a prefix of ids share a prefix of words.
        """
        num_tokens = len(token_ids) - self.tokens_around
        num_words = max(1, round(num_tokens / self.tokens_per_word))
        step = len(token_ids) / num_words
        return words_of(token_ids[int(i * step)] for i in range(num_words))


def words_of(token_ids: Iterable[int]) -> str:
    """A word for each id."""
    return " ".join(WORDS[i % len(WORDS)] for i in token_ids)


def all_words(times: int) -> str:
    """Every word so many times."""
    return " ".join(WORDS * times)
