"""The message parser: reasoning, content and calls of a growing text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat.call_formats import HERMES
from server.chat.message_parser import MessageParser
from server.chat.reasoning import ReasoningSplitter
from server.chat.tool_calls import CallParser
from tests.server.splitting import PLACES, cut, texts_of

CALL = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'


def parser(*, thinks: bool = True, calls: bool = True) -> MessageParser:
    return MessageParser(
        ReasoningSplitter() if thinks else None, CallParser(HERMES, {"add": {}}) if calls else None
    )


def summed(parser: MessageParser, pieces: list[str]) -> tuple[str, str, list[tuple[str, str]]]:
    reasoning, content = "", ""
    calls: list[tuple[str, str]] = []
    for i, piece in enumerate(pieces):
        part = parser.push(piece, is_last=i == len(pieces) - 1)
        reasoning, content = reasoning + part.reasoning, content + part.content
        for index, name, arguments, _ in part.calls:
            if name is not None:
                calls.append((name, ""))
            calls[index] = (calls[index][0], calls[index][1] + arguments)
    return reasoning, content, calls


def test_calls_inside_the_reasoning_are_not_calls() -> None:
    text = f"<think>I could {CALL}.</think>I add. {CALL}"
    assert summed(parser(), [text]) == (f"I could {CALL}.", "I add.", [("add", "{}")])


def test_markers_without_a_parser_are_content() -> None:
    text = f"<think>Well.</think>{CALL}"
    assert summed(parser(thinks=False, calls=False), [text]) == ("", text, [])
    assert summed(parser(calls=False), [text]) == ("Well.", CALL, [])
    assert summed(parser(thinks=False), [text])[1:] == ("<think>Well.</think>", [("add", "{}")])


def test_the_last_text_releases_what_was_held_back() -> None:
    split = parser()
    assert split.push("a <tool_", is_last=False).content == "a"
    assert split.push("call", is_last=True).content == " <tool_call"


def test_the_number_of_calls_is_known_with_their_names() -> None:
    split = parser()
    split.push('<tool_call>{"name": "add", ', is_last=False)
    assert split.num_calls == 0
    (begun,) = split.push('"arguments": {', is_last=False).calls
    assert begun[:3] == (0, "add", "{")
    assert split.num_calls == 1


@settings(deadline=None)
@given(
    texts_of("<think>", "</think>", "<tool_call>", "</tool_call>", CALL),
    PLACES,
    st.booleans(),
    st.booleans(),
)
def test_the_pieces_do_not_matter(text: str, places: list[int], thinks: bool, calls: bool) -> None:
    pieces = cut(text, places) or [""]
    whole = summed(parser(thinks=thinks, calls=calls), [text])
    assert summed(parser(thinks=thinks, calls=calls), pieces) == whole
