"""Message formats: detection from templates and settings, and their parsers."""

from typing import Any

import pytest

from configs.schema.model import ChatConfig
from server.chat.call_formats import HERMES, LLAMA3_JSON
from server.chat.message_formats import MessageFormats, formats_of
from server.chat.tool_choice import ToolChoice
from tests.server.chat.test_tool_choice import chosen
from tests.server.templates import CHATML, LLAMA3, QWEN


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (QWEN, MessageFormats(HERMES, thinks=True)),
        (LLAMA3, MessageFormats(LLAMA3_JSON, thinks=False)),
        (CHATML, MessageFormats(None, thinks=False)),
        ("", MessageFormats(None, thinks=False)),
    ],
    ids=["qwen", "llama3", "chatml", "none"],
)
def test_the_formats_are_detected_from_the_template(
    template: str, expected: MessageFormats
) -> None:
    assert formats_of(ChatConfig(), template) == expected


def test_settings_override_the_template() -> None:
    def found(**settings: Any) -> str:
        return str(formats_of(ChatConfig(**settings), QWEN))

    assert found() == "tool calls hermes, reasoning think"
    assert found(tool_call_parser="llama3_json") == "tool calls llama3_json, reasoning think"
    assert found(tool_call_parser="none", reasoning_parser="none") == (
        "tool calls none, reasoning none"
    )


def test_forced_calls_have_a_format_in_any_case() -> None:
    unknown = MessageFormats(None, thinks=False)
    assert unknown.of_calls(chosen("required")) is HERMES
    assert unknown.of_calls(chosen("auto")) is None
    assert MessageFormats(LLAMA3_JSON, thinks=False).of_calls(chosen("required")) is LLAMA3_JSON
    assert MessageFormats(HERMES, thinks=False).of_calls(ToolChoice()) is None


def test_there_is_no_parser_without_markers() -> None:
    plain, thinking = (MessageFormats(HERMES, thinks=thinks) for thinks in (False, True))
    assert plain.reader(ToolChoice(), several=True, opened=False) is None
    assert plain.markers(None) == set()
    reader = thinking.reader(ToolChoice(), several=True, opened=True)
    assert reader is not None
    assert reader().push("Well.</think>So.", is_last=True) == ("Well.", "So.", [])
    assert reader() is not reader()
