"""The chunks of a chat, built without a model."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from server.chat.message_parser import MessageParser
from server.chat.reasoning import ReasoningSplitter
from server.chat.tool_calls import HERMES, CallParser
from server.openai.fields.chat import ChatRequest
from server.openai.rendering.chat import ChatRendering
from server.requests.generation import Piece
from server.requests.plan import Plan
from tests.server.world import TOKENIZER

HI = [{"role": "user", "content": "hi"}]


def rendering(*, parses: bool = False, **fields: Any) -> ChatRendering:
    request = ChatRequest.model_validate({"model": "m", "messages": HI, "stream": True} | fields)
    plan = Plan([[1, 2]], request.n, [9], returns_tokens=request.return_token_ids, model="m")

    def parser() -> MessageParser:
        return MessageParser(ReasoningSplitter(), CallParser(HERMES, ["add"]))

    return ChatRendering(request, plan, TOKENIZER, parser if parses else None, "fp_1")


def parsed(event: bytes) -> Any:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    chunk = json.loads(event.removeprefix(b"data: "))
    ChatCompletionChunk.model_validate(chunk)
    return chunk


PLAIN = rendering(n=128)


@settings(deadline=None)
@given(st.text(), st.integers(0, 127))
def test_a_plain_chunk_is_what_a_model_would_encode(text: str, index: int) -> None:
    found = PLAIN
    chunk = parsed(found.chunk(Piece(index, text)))
    nothing = {"logprobs": None, "finish_reason": None}
    assert chunk["choices"] == [{"index": index, "delta": {"content": text}} | nothing]
    last = parsed(found.chunk(Piece(index, text, "stop")))
    assert chunk.keys() == last.keys()


@pytest.mark.parametrize("usage", [False, True])
def test_only_a_stream_with_usage_speaks_of_it(usage: bool) -> None:
    found = rendering(parses=True, stream_options={"include_usage": usage})
    for piece in (Piece(0, "hello"), Piece(0, "", "stop")):
        assert ("usage" in parsed(found.chunk(piece))) == usage


def test_text_that_may_become_a_call_makes_no_event() -> None:
    found = rendering(parses=True)
    assert parsed(found.chunk(Piece(0, "hello <tool")))["choices"][0]["delta"] == {
        "content": "hello"
    }
    assert found.chunk(Piece(0, "_call>")) == b""
    assert parsed(found.chunk(Piece(0, " x")))["choices"][0]["delta"] == {
        "content": " <tool_call> x"
    }


def test_tokens_of_text_that_is_held_back_are_returned_at_once() -> None:
    found = rendering(parses=True, return_token_ids=True)
    choice = parsed(found.chunk(Piece(0, "<tool", token_ids=[7])))["choices"][0]
    assert (choice["delta"], choice["token_ids"]) == ({}, [7])


def test_tokens_of_plain_text_are_returned_with_it() -> None:
    found = rendering(parses=True, return_token_ids=True)
    choice = parsed(found.chunk(Piece(0, "hello", token_ids=[7])))["choices"][0]
    assert (choice["delta"], choice["token_ids"]) == ({"content": "hello"}, [7])


def test_each_choice_has_a_parser_of_its_own() -> None:
    found = rendering(parses=True, n=2)
    found.chunk(Piece(0, "<think>Well."))
    deltas = [parsed(found.chunk(Piece(i, " So.")))["choices"][0]["delta"] for i in range(2)]
    assert deltas[0] == {"reasoning_content": " So.", "reasoning": " So."}
    assert deltas[1] == {"content": " So."}
