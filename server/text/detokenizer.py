"""Incremental detokenization: emits only complete characters.

Invariant for a prompt and output tokens t1..tn:
decode(prompt) + push(t1) + ... + push(tn) + flush() == decode([*prompt, t1, ..., tn]).

If the output completes a character that the prompt began, the character belongs to the output.
Without a prompt, or if no token of the prompt has a text, the output is the beginning of a text.
"""

from collections.abc import Callable, Set
from typing import Protocol

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream

from server.text.prompt_end import HALF_CHARACTER, NO_PROMPT, PromptEnd


class Detokenizer(Protocol):
    """Converts the tokens of one sequence to text, one at a time."""

    def push(self, token_id: int) -> str:
        """The text that this token completes, often none."""

    def flush(self) -> str:
        """The text after the last token; incomplete characters become U+FFFD.

        It changes nothing: more tokens may follow.
        """


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
        after: PromptEnd = NO_PROMPT,
    ) -> None:
        self._core = core
        self._sticky_ids = sticky_ids
        self._skips = skip_special_tokens
        self._token_ids = list(after.context)
        self._stream = DecodeStream(self._token_ids, skip_special_tokens=skip_special_tokens)
        self._num_shown = len(self._decode()) if after.context else 0
        self._after = after if after.held else None  # None once text was shown
        self._held: list[int] = []
        for token_id in after.held:
            self._step(token_id)

    def push(self, token_id: int) -> str:
        """The text that this token completes, often none."""
        text = self._step(token_id)
        return self._show(text) if text else ""

    def flush(self) -> str:
        """The rest, after the last token; more tokens may follow, as if it had not been called."""
        text = self._decode()[self._num_shown :]
        return text if self._after is None else self._after.without_held(text)

    def _step(self, token_id: int) -> str | None:
        self._token_ids.append(token_id)
        if not self._sticky_ids:
            return self._stream.step(self._core, token_id)
        self._held.append(token_id)
        if token_id in self._sticky_ids:
            return None
        held, self._held = self._held, []
        return self._stream.step(self._core, held)

    def _show(self, text: str) -> str:
        self._num_shown += len(text)
        if self._after is not None:
            text, self._after = self._after.without_held(text), None
        return text

    def _decode(self) -> str:
        return self._core.decode(self._token_ids, skip_special_tokens=self._skips)


class WindowDetokenizer:
    """For tokenizers written in Python: decodes a window of the last tokens each time.

    The window begins with tokens that have a text by themselves, because decoders treat the
    beginning of a text differently (a leading space is lost).
    """

    def __init__(self, decode: Callable[[list[int]], str], after: PromptEnd = NO_PROMPT) -> None:
        self._decode = decode
        self._token_ids = [*after.context, *after.held]
        self._start = 0
        self._shown_to = len(after.context)
        self._after = after if after.held else None  # None once text was shown

    def push(self, token_id: int) -> str:
        """The text that this token completes, often none."""
        self._token_ids.append(token_id)
        text = self._unshown()
        if not text or text.endswith(HALF_CHARACTER):
            return ""
        if self._decode(self._token_ids[self._shown_to :]):
            self._start = self._shown_to
        self._shown_to = len(self._token_ids)
        return self._show(text)

    def flush(self) -> str:
        """The rest, after the last token; more tokens may follow, as if it had not been called."""
        text = self._unshown()
        return text if self._after is None else self._after.without_held(text)

    def _show(self, text: str) -> str:
        if self._after is not None:
            text, self._after = self._after.without_held(text), None
        return text

    def _unshown(self) -> str:
        before = self._decode(self._token_ids[self._start : self._shown_to])
        return self._decode(self._token_ids[self._start :])[len(before) :]
