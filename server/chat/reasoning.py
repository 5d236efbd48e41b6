"""Reasoning: separates the reasoning that a model writes first from its answer.

There are two invariants: the result does not depend on how the text was split into pieces, and
nothing is lost except the tags and the white space around them.
"""

from typing import Literal

from server.chat.markers import find_marker

BEGIN, END = "<think>", "</think>"

ReasoningFormat = Literal["think", "none"]


def format_of(template: str) -> ReasoningFormat:
    """Return how a model with this chat template marks its reasoning."""
    return "think" if END in template else "none"


def leaves_open(prompt: str, continued: str = "") -> bool:
    """Return whether the prompt ends inside the reasoning, so that no begin tag is generated.

    `continued` is the part of the prompt that the answer continues (`continue_final_message`).
    """
    return prompt.rstrip().endswith(BEGIN) or continued.rfind(BEGIN) > continued.rfind(END)


def is_closed(prompt: str) -> bool:
    """Return whether the prompt ends with a reasoning, so that the answer has none.

    Templates write an empty one if `enable_thinking` is false.
    """
    return prompt.rstrip().endswith(END)


class ReasoningSplitter:
    """Splits a growing text that may begin with reasoning in tags.

    With `opened`, the begin tag is in the prompt. Reasoning without an end tag extends to the end
    of the text.
    """

    def __init__(self, *, opened: bool = False) -> None:
        self._opened = opened
        self._state: Literal["start", "reasoning", "between", "answer"] = "start"
        self._held = ""
        self._has_reasoned = False
        self.has_begun = False

    @property
    def has_ended(self) -> bool:
        """Whether the reasoning is over and the answer follows."""
        return self._state in ("between", "answer")

    def push(self, text: str) -> tuple[str, str]:
        """Return the parts that are certain by now: (reasoning, answer)."""
        if self._state == "answer":
            return "", text
        self._held += text
        if self._state == "start":
            self._start()
        reasoning = self._reason() if self._state == "reasoning" else ""
        if self._state == "between":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "answer"
        if self._state != "answer":
            return reasoning, ""
        answer, self._held = self._held, ""
        return reasoning, answer

    def flush(self) -> tuple[str, str]:
        """Return the text that was held back; to be called after the last piece."""
        held, self._held = self._held, ""
        if self._state == "reasoning" or (self._state == "start" and self._opened):
            return held.strip(), ""
        return "", held

    def _start(self) -> None:
        text = self._held.lstrip()
        if text.startswith(BEGIN):
            self._held, self._state = text[len(BEGIN) :], "reasoning"
        elif not BEGIN.startswith(text):
            self._state = "reasoning" if self._opened else "answer"
        self.has_begun = self._state == "reasoning"

    def _reason(self) -> str:
        if not self._has_reasoned:
            self._held = self._held.lstrip()
        at, is_whole = find_marker(self._held, END)
        shown = self._held[:at].rstrip()
        if is_whole:
            self._held, self._state = self._held[at + len(END) :], "between"
        else:
            self._held = self._held[len(shown) :]
        self._has_reasoned = self._has_reasoned or bool(shown)
        return shown


class ReasoningCounter:
    """Counts reasoning tokens, including the tags; for `opened`, see `ReasoningSplitter`."""

    def __init__(self, *, opened: bool = False) -> None:
        self._splitter = ReasoningSplitter(opened=opened)
        self._opened = opened
        self._num_tokens = 0

    def push(self, text: str) -> None:
        """Count the next token, which has this text."""
        if not self._splitter.has_ended:
            self._num_tokens += 1
            self._splitter.push(text)

    @property
    def num_tokens(self) -> int:
        """The number of tokens so far, up to and including the token that ends the reasoning."""
        return self._num_tokens if self._splitter.has_begun or self._opened else 0
