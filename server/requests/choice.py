"""A choice: converts the tokens of one sequence to the text that the client sees."""

from collections.abc import Mapping
from typing import Literal

from server.chat.reasoning import ReasoningCounter
from server.requests.planning.plan import Plan
from server.text.detokenizer import Detokenizer
from server.text.prompt_end import PromptEnd
from server.text.special_stops import MarkedDetokenizer, MarkedStopStrings, Marks
from server.text.stop_strings import StopStrings
from server.text.tokenizer import Tokenizer

TextReason = Literal["stop", "length"]


class Choice:
    """Decodes tokens to text, and stops at stop strings.

    `finish_reason` is set once no more text will come. `stop_reason` is the stop string or stop
    token of the client that ended the choice, if any.
    """

    __slots__ = (
        "_detokenizer",
        "_include_stop",
        "_min_tokens",
        "_own_stop_ids",
        "_reasoning",
        "_special_stops",
        "_stop_strings",
        "_stop_token_ids",
        "finish_reason",
        "num_tokens",
        "stop_reason",
    )

    def __init__(self, plan: Plan, tokenizer: Tokenizer, after: PromptEnd) -> None:
        """`after` is the end of the prompt."""
        self.num_tokens = 0
        self.finish_reason: TextReason | None = None
        self.stop_reason: str | int | None = None
        self._detokenizer: Detokenizer = tokenizer.detokenizer(
            skip_special_tokens=plan.skip_special_tokens, after=after
        )
        self._stop_strings: StopStrings | MarkedStopStrings | None = None
        # What stands in the searched text for the special tokens that occur in stop strings.
        self._special_stops: Mapping[int, str] = {}
        if plan.stop_strings:
            self._search(plan)
        self._stop_token_ids = frozenset(plan.stop_token_ids)
        self._own_stop_ids = plan.own_stop_ids
        self._include_stop = plan.include_stop
        self._reasoning = (
            None if plan.reasoning is None else ReasoningCounter(opened=plan.reasoning == "opened")
        )
        self._min_tokens = plan.min_tokens

    @property
    def num_reasoning_tokens(self) -> int:
        """The number of tokens that are reasoning and not answer."""
        return 0 if self._reasoning is None else self._reasoning.num_tokens

    def push(self, token_ids: list[int]) -> str:
        """Add tokens, and return the text that is certain now; sets `finish_reason` on a stop."""
        text = ""
        for token_id in token_ids:
            self.num_tokens += 1
            if token_id in self._stop_token_ids:
                self.stop_reason = token_id if token_id in self._own_stop_ids else None
                if self._completes_stop_string(token_id):
                    held = self._detokenizer.flush()
                    text += self._filter(held + self._special_stops[token_id])
                    break
                if not (self._include_stop and token_id in self._own_stop_ids):
                    break
            new_text = self._detokenizer.push(token_id)
            if self._reasoning is not None:
                self._reasoning.push(new_text)
            text += self._filter(new_text)
            if self.finish_reason is not None:
                break
        return text

    def flush(self, reason: TextReason) -> str:
        """Return the rest of the text, after the engine has ended the sequence."""
        text = self._filter(self._detokenizer.flush())
        if self.finish_reason is None:
            self.finish_reason = reason
            if self._stop_strings is not None:
                text += self._stop_strings.flush()
        return text

    def _search(self, plan: Plan) -> None:
        """Prepare to search the text for stop strings."""
        include = plan.include_stop
        if plan.special_stops and plan.skip_special_tokens:
            marks = Marks(plan.special_stops)
            self._stop_strings = MarkedStopStrings(plan.stop_strings, marks, include=include)
            self._detokenizer = MarkedDetokenizer(self._detokenizer, marks.by_id)
            self._special_stops = marks.by_id
        else:
            self._stop_strings = StopStrings(plan.stop_strings, include=include)
            self._special_stops = {id_: text for text, id_ in plan.special_stops.items()}

    def _completes_stop_string(self, token_id: int) -> bool:
        """Whether a token that ends the sequence, and is not shown, completes a stop string."""
        text = self._special_stops.get(token_id)
        if self._stop_strings is None or text is None or self.num_tokens < self._min_tokens:
            return False
        return self._stop_strings.is_ended_by(self._detokenizer.flush() + text)

    def _filter(self, text: str) -> str:
        stop_strings = self._stop_strings
        if not text or stop_strings is None:
            return text
        if self.num_tokens < self._min_tokens:
            return stop_strings.skip(text)
        text, stopped = stop_strings.push(text)
        if stopped:
            self.finish_reason, self.stop_reason = "stop", stop_strings.matched
        return text
