"""Message formats: how a model marks its calls and its reasoning, and their parsers."""

from collections.abc import Callable
from dataclasses import dataclass

from configs.model import ChatConfig
from server.chat import reasoning, tool_calls
from server.chat.message_parser import MessageParser
from server.chat.reasoning import ReasoningSplitter
from server.chat.tool_calls import HERMES, CallFormat, CallParser
from server.chat.tool_choice import ToolChoice


@dataclass(frozen=True)
class MessageFormats:
    """The formats of one model; `calls` is None if there is no parser for its calls."""

    calls: CallFormat | None
    thinks: bool

    def __str__(self) -> str:
        known = (name for name, known in tool_calls.FORMATS.items() if known is self.calls)
        calls, thoughts = next(known, "none"), "think" if self.thinks else "none"
        return f"tool calls {calls}, reasoning {thoughts}"

    def of_calls(self, choice: ToolChoice) -> CallFormat | None:
        """Return the call format if the model may call tools and there is a parser, else None."""
        if not choice.allowed:
            return None
        return self.calls or HERMES if choice.is_forced else self.calls

    def markers(self, call_format: CallFormat | None) -> set[str]:
        """Return the markers that the parsers search for in a text."""
        markers = {reasoning.BEGIN, reasoning.END} if self.thinks else set()
        return markers if call_format is None else markers | {call_format.begin, call_format.end}

    def reader(
        self, choice: ToolChoice, *, several: bool, opened: bool
    ) -> Callable[[], MessageParser] | None:
        """Return a function that creates a parser per choice; None if all text is content.

        `several` allows more than one call. `opened` means that the prompt opens the reasoning.
        """
        call_format, thinks = self.of_calls(choice), self.thinks
        if call_format is None and not thinks:
            return None

        def parser() -> MessageParser:
            return MessageParser(
                ReasoningSplitter(opened=opened) if thinks else None,
                _call_parser(call_format, choice, several=several) if call_format else None,
            )

        return parser


def _call_parser(call_format: CallFormat, choice: ToolChoice, *, several: bool) -> CallParser:
    return CallParser(call_format, choice.names, several=several, only_calls=choice.is_forced)


def formats_of(config: ChatConfig, template: str) -> MessageFormats:
    """Return the formats of the settings; "auto" detects them from the chat template."""
    if config.tool_call_parser == "auto":
        calls = tool_calls.format_of(template)
    else:
        calls = tool_calls.FORMATS.get(config.tool_call_parser)
    marks = config.reasoning_parser
    if marks == "auto":
        marks = reasoning.format_of(template)
    return MessageFormats(calls, thinks=marks == "think")
