"""Stop strings that name special tokens, which are omitted from the text.

Each special token that occurs in a stop string has a mark: a lone surrogate, which no decoded text
contains. The mark stands for the token in the text and in the stop strings while they are compared,
and is removed before the text is shown. A stop string can therefore be the text of a special token,
or contain it beside other text, but not match only a part of it.
"""

from collections.abc import Mapping, Sequence

from server.text.detokenizer import Detokenizer
from server.text.prompt_end import HALF_CHARACTER
from server.text.stop_strings import StopStrings

_FIRST_MARK, _NUM_MARKS = 0xD800, 0x800


def find_special_tokens(stops: Sequence[str], special_tokens: Mapping[str, int]) -> dict[str, int]:
    """The special tokens that occur in the stop strings, with their ids; the longest where several
    begin at one place.
    """
    lengths = sorted({len(special) for special in special_tokens if special}, reverse=True)
    first_letters = {special[0] for special in special_tokens if special}
    found: dict[str, int] = {}
    for stop in stops:
        at = 0
        while at < len(stop):
            parts = (stop[at : at + length] for length in lengths)
            is_first = stop[at] in first_letters
            special = next((p for p in parts if p in special_tokens), None) if is_first else None
            if special is not None:
                found[special] = special_tokens[special]
            at += len(special or " ")
    return found


class Marks:
    """The marks of the special tokens that occur in stop strings; `by_id` has them by token id."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        named = list(special_tokens.items())[:_NUM_MARKS]
        self._marks = {special: chr(_FIRST_MARK + i) for i, (special, _) in enumerate(named)}
        self.by_id = {id_: self._marks[special] for special, id_ in named}
        self._names = {ord(mark): special for special, mark in self._marks.items()}
        self._longest_first = sorted(self._marks, key=len, reverse=True)

    def mark(self, stop: str) -> str:
        """A stop string with marks in place of special tokens."""
        for special in self._longest_first:
            stop = stop.replace(special, self._marks[special])
        return stop

    def without(self, text: str) -> str:
        """The text without its marks."""
        return text.translate(dict.fromkeys(self._names))

    def named(self, text: str) -> str:
        """The text with special tokens in place of their marks."""
        return text.translate(self._names)


class MarkedStopStrings:
    """`StopStrings` for a text with marks, which are not shown.

    A stop string is also found where ordinary tokens spell the special tokens in it.
    """

    def __init__(self, stops: Sequence[str], marks: Marks, *, include: bool = False) -> None:
        self._marks = marks
        self._include = include
        self._originals = {marks.mark(stop): stop for stop in stops} | {s: s for s in stops}
        self._inner = StopStrings(list(self._originals), include=include)

    @property
    def matched(self) -> str | None:
        """The stop string that was found."""
        found = self._inner.matched
        return None if found is None else self._originals[found]

    def skip(self, piece: str) -> str:
        """See `StopStrings.skip`."""
        return self._marks.without(self._inner.skip(piece))

    def push(self, piece: str) -> tuple[str, bool]:
        """See `StopStrings.push`."""
        text, stopped = self._inner.push(piece)
        if not (stopped and self._include and self._inner.matched):
            return self._marks.without(text), stopped
        begin = max(0, len(text) - len(self._inner.matched))
        return self._marks.without(text[:begin]) + self._marks.named(text[begin:]), True

    def is_ended_by(self, piece: str) -> bool:
        """See `StopStrings.is_ended_by`."""
        return self._inner.is_ended_by(piece)

    def flush(self) -> str:
        """See `StopStrings.flush`."""
        return self._marks.without(self._inner.flush())


class MarkedDetokenizer:
    """Adds marks to the text of a detokenizer that omits special tokens.

    The text before a mark must be complete, and the inner detokenizer may hold it back: the last
    bytes may be part of a character that continues after the special token.
    """

    def __init__(self, inner: Detokenizer, marks: Mapping[int, str]) -> None:
        self._inner = inner
        self._marks = marks
        self._is_held = False  # whether the inner one may hold text back
        self._ahead = ""  # shown already, and still to come from the inner one

    def push(self, token_id: int) -> str:
        """The text that this token completes, and its mark if it has one."""
        text = self._unseen(self._inner.push(token_id))
        mark = self._marks.get(token_id)
        if mark is None:
            self._is_held = not text
            return text
        return text + self._take_held() + mark

    def flush(self) -> str:
        """The rest, after the last token."""
        return self._unseen(self._inner.flush())

    def _take_held(self) -> str:
        """The complete characters that the inner detokenizer holds back."""
        if not self._is_held:
            return ""
        held = self._inner.flush().rstrip(HALF_CHARACTER)
        if not held.startswith(self._ahead):
            return ""
        text = held[len(self._ahead) :]
        self._ahead = held
        return text

    def _unseen(self, text: str) -> str:
        """What of the inner detokenizer's text is new."""
        if not text:
            return ""
        ahead, self._ahead = self._ahead, ""
        if text.startswith(ahead):
            return text[len(ahead) :]
        # Later byte tokens made the whole run invalid: each byte is U+FFFD now.
        return text[len(ahead.encode()) :]
