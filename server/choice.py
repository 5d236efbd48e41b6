"""A choice: one sequence's tokens on their way to the text that its client sees."""

from typing import Literal

from server.detokenizer import Detokenizer
from server.plan import Plan
from server.stop_strings import StopStrings
from server.tokenizer import Tokenizer

TextReason = Literal["stop", "length"]


class Choice:
    """Takes tokens, gives text; `finish_reason` is set once no more will come."""

    __slots__ = (
        "_detokenizer",
        "_min_tokens",
        "_stop_strings",
        "_stop_token_ids",
        "finish_reason",
        "num_tokens",
    )

    def __init__(self, plan: Plan, tokenizer: Tokenizer) -> None:
        self.num_tokens = 0
        self.finish_reason: TextReason | None = None
        self._detokenizer: Detokenizer = tokenizer.detokenizer()
        self._stop_strings = StopStrings(plan.stop_strings) if plan.stop_strings else None
        self._stop_token_ids = frozenset(plan.stop_token_ids)
        self._min_tokens = plan.min_tokens

    def push(self, token_ids: list[int]) -> str:
        """The text that these tokens release; sets `finish_reason` at a stop string."""
        text = ""
        for token_id in token_ids:
            self.num_tokens += 1
            if token_id in self._stop_token_ids:
                break
            text += self._filter(self._detokenizer.push(token_id))
            if self.finish_reason is not None:
                break
        return text

    def flush(self, reason: TextReason) -> str:
        """The rest of the text, once the engine has ended the sequence."""
        text = self._filter(self._detokenizer.flush())
        if self.finish_reason is None:
            self.finish_reason = reason
            if self._stop_strings is not None:
                text += self._stop_strings.flush()
        return text

    def _filter(self, text: str) -> str:
        if not text or self._stop_strings is None or self.num_tokens < self._min_tokens:
            return text
        text, stopped = self._stop_strings.push(text)
        if stopped:
            self.finish_reason = "stop"
        return text
