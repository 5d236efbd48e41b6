"""Message formats: how a model marks its calls and its reasoning, and their parsers."""

from collections.abc import Callable
from dataclasses import dataclass

from configs.schema.model import ChatConfig
from server.chat import call_formats, reasoning
from server.chat.call_formats import HERMES, CallFormat
from server.chat.message_parser import MessageParser
from server.chat.reasoning import ReasoningSplitter
from server.chat.tool_calls import CallParser
from server.chat.tool_choice import ToolChoice


@dataclass(frozen=True)
class MessageFormats:
    """The formats of one model; `calls` is None if there is no parser for its calls."""

    calls: CallFormat | None
    thinks: bool

    def __str__(self) -> str:
        known = (name for name, known in call_formats.FORMATS.items() if known is self.calls)
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
        return markers if call_format is None else markers | call_format.markers

    def reader(
        self, choice: ToolChoice, *, several: bool, opened: bool, only_whole: bool = False
    ) -> Callable[[], MessageParser] | None:
        """Return a function that creates a parser per choice; None if all text is content.

        `several` allows more than one call. `opened` means that the prompt opens the reasoning. For
        `only_whole`, see `CallParser`.
        """
        call_format, thinks = self.of_calls(choice), self.thinks
        if call_format is None and not thinks:
            return None

        schemas = dict(choice.schemas)

        def parser() -> MessageParser:
            splitter = ReasoningSplitter(opened=opened) if thinks else None
            if call_format is None:
                return MessageParser(splitter, None)
            calls = CallParser(
                call_format,
                schemas,
                several=several,
                only_calls=choice.is_forced,
                only_whole=only_whole,
            )
            return MessageParser(splitter, calls)

        return parser


def formats_of(config: ChatConfig, template: str) -> MessageFormats:
    """Return the formats of the settings; "auto" detects them from the chat template."""
    if config.tool_call_parser == "auto":
        calls = call_formats.format_of(template)
    else:
        calls = call_formats.FORMATS.get(config.tool_call_parser)
    marks = config.reasoning_parser
    if marks == "auto":
        marks = reasoning.format_of(template)
    return MessageFormats(calls, thinks=marks == "think")
