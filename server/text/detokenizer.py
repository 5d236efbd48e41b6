"""Incremental detokenization: emits only complete characters.

Invariant for tokens t1..tn: push(t1) + ... + push(tn) + flush() == decode([t1, ..., tn]).
"""

from collections.abc import Callable, Set
from typing import Protocol

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream

HALF_CHARACTER = "\ufffd"


class Detokenizer(Protocol):
    """Converts the tokens of one sequence to text, one at a time."""

    def push(self, token_id: int) -> str:
        """The text that this token completes, often none."""

    def flush(self) -> str:
        """The remaining text after the last token; incomplete characters become U+FFFD."""


class FastDetokenizer:
    """For tokenizers of the `tokenizers` library (0.6 us per token).

    `sticky_ids` are tokens that must be decoded together with their successor, such as the byte
    token `<0xE2>`. A run of byte tokens is decoded as a whole, because the later ones decide
    whether the first ones are valid characters. Special tokens do not end a run, because they are
    removed before decoding.
    """

    def __init__(
        self,
        core: FastTokenizer,
        sticky_ids: Set[int] = frozenset(),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._core = core
        self._sticky_ids = sticky_ids
        self._skips = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._held: list[int] = []
        self._token_ids: list[int] = []
        self._num_shown = 0

    def push(self, token_id: int) -> str:
        """The text that this token completes, often none."""
        self._token_ids.append(token_id)
        if not self._sticky_ids:
            return self._show(self._stream.step(self._core, token_id))
        self._held.append(token_id)
        if token_id in self._sticky_ids:
            return ""
        held, self._held = self._held, []
        return self._show(self._stream.step(self._core, held))

    def flush(self) -> str:
        """The rest, after the last token."""
        return self._core.decode(self._token_ids, skip_special_tokens=self._skips)[
            self._num_shown :
        ]

    def _show(self, text: str | None) -> str:
        if text is None:
            return ""
        self._num_shown += len(text)
        return text


class WindowDetokenizer:
    """For tokenizers written in Python: decodes a window of the last tokens each time.

    The window begins with the tokens of the previous piece, because decoders treat the beginning of
    a text differently (a leading space is lost).
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._token_ids: list[int] = []
        self._start = 0
        self._shown_to = 0

    def push(self, token_id: int) -> str:
        """The text that this token completes, often none."""
        self._token_ids.append(token_id)
        text = self._unshown()
        if not text or text.endswith(HALF_CHARACTER):
            return ""
        self._start, self._shown_to = self._shown_to, len(self._token_ids)
        return text

    def flush(self) -> str:
        """The rest, after the last token."""
        return self._unshown()

    def _unshown(self) -> str:
        before = self._decode(self._token_ids[self._start : self._shown_to])
        return self._decode(self._token_ids[self._start :])[len(before) :]
