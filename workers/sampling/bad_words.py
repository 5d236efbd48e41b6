"""Bad words: token sequences that one answer must not complete."""

from collections import defaultdict
from collections.abc import Iterable


class BadWords:
    """Tracks the tokens so far, to find the tokens that must not come next."""

    def __init__(self, words: Iterable[tuple[int, ...]], tokens: list[int]) -> None:
        self._single: list[int] = []
        # Words by their token before the last: only words under the newest token can be completed.
        self._longer: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        longest = 1
        for word in words:
            longest = max(longest, len(word))
            if len(word) == 1:
                self._single.append(word[0])
            else:
                self._longer[word[-2]].append(word)
        self._longest = longest
        self._tokens = tokens[1 - longest :] if longest > 1 else []

    def append(self, token_id: int) -> None:
        """Add a generated token."""
        self._tokens.append(token_id)
        if len(self._tokens) > 2 * self._longest:
            del self._tokens[: -self._longest]

    def banned(self) -> list[int]:
        """The tokens that would complete a word."""
        tokens = self._tokens
        near = self._longer.get(tokens[-1], ()) if tokens else ()
        return self._single + [
            word[-1] for word in near if tuple(tokens[1 - len(word) :]) == word[:-1]
        ]
