"""The message parser: splits a choice's growing text into the parts of a chat message."""

from typing import NamedTuple

from server.chat.reasoning import ReasoningSplitter
from server.chat.tool_calls import CallDelta, CallParser


class MessageDelta(NamedTuple):
    """The new parts of a message since the last delta; each of them may be empty."""

    reasoning: str
    content: str
    calls: list[CallDelta]


class MessageParser:
    """Splits off the reasoning first, then the calls; each of the two parsers is optional."""

    def __init__(self, splitter: ReasoningSplitter | None, calls: CallParser | None) -> None:
        self._splitter = splitter
        self._calls = calls

    @property
    def num_calls(self) -> int:
        """The number of calls that have begun."""
        return 0 if self._calls is None else self._calls.num_calls

    def push(self, text: str, *, is_last: bool) -> MessageDelta:
        """Return the parts that are certain by now; with `is_last`, everything that is left."""
        reasoning, content = self._split(text, is_last=is_last)
        if self._calls is None:
            return MessageDelta(reasoning, content, [])
        text, deltas = self._calls.push(content)
        if is_last:
            text += self._calls.flush()
        return MessageDelta(reasoning, text, deltas)

    def _split(self, text: str, *, is_last: bool) -> tuple[str, str]:
        if self._splitter is None:
            return "", text
        reasoning, content = self._splitter.push(text)
        if is_last:
            last_reasoning, last_content = self._splitter.flush()
            reasoning, content = reasoning + last_reasoning, content + last_content
        return reasoning, content
