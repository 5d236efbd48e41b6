"""The chunks of a chat, built without a model."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from server.chat.call_formats import HERMES
from server.chat.message_parser import MessageParser
from server.chat.reasoning import ReasoningSplitter
from server.chat.tool_calls import CallParser
from server.openai.fields.chat import ChatRequest
from server.openai.rendering.chat import ChatRendering
from server.openai.rendering.sse import DONE
from server.requests.generation import Piece
from server.requests.logprobs import TokenLogprobs
from server.requests.planning.plan import Plan
from tests.server.world import TOKENIZER

HI = [{"role": "user", "content": "hi"}]


def rendering(*, parses: bool = False, **fields: Any) -> ChatRendering:
    request = ChatRequest.model_validate({"model": "m", "messages": HI, "stream": True} | fields)
    plan = Plan(
        [[1, 2]],
        request.n,
        [9],
        returns_tokens=request.return_token_ids or request.logprobs,
        continuous_usage=request.continuous_usage,
        model="m",
    )

    def parser() -> MessageParser:
        return MessageParser(ReasoningSplitter(), CallParser(HERMES, {"add": {}}))

    return ChatRendering(request, plan, TOKENIZER, parser if parses else None, "fp_1")


def events(written: bytes) -> list[Any]:
    """The events as JSON; each is a chunk of the reference."""
    assert written.endswith(b"\n\n")
    found = []
    for event in written.removesuffix(b"\n\n").split(b"\n\n"):
        assert event.startswith(b"data: ")
        assert b"\n" not in event
        found.append(json.loads(event.removeprefix(b"data: ")))
        ChatCompletionChunk.model_validate(found[-1])
    return found


def parsed(written: bytes) -> Any:
    """The event with the text of a choice that may have just begun."""
    *role, chunk = events(written)
    assert [event["choices"][0]["delta"]["role"] for event in role] in ([], ["assistant"])
    return chunk


PLAIN = rendering(n=128)


@settings(deadline=None)
@given(st.text(), st.integers(0, 127))
def test_a_plain_chunk_is_what_a_model_would_encode(text: str, index: int) -> None:
    chunk = parsed(PLAIN.chunk(Piece(index, text)))
    nothing = {"logprobs": None, "finish_reason": None}
    assert chunk["choices"] == [{"index": index, "delta": {"content": text}} | nothing]


def test_the_role_comes_with_the_first_text_and_the_end_by_itself() -> None:
    found = rendering(n=2)
    assert found.opening() == b""
    written = found.chunk(Piece(1, "a")) + found.chunk(Piece(1, "b", "stop"))
    written += found.chunk(Piece(0, "", "length"))
    choices = [event["choices"][0] for event in events(written)]
    assert [(c["index"], c["delta"], c["finish_reason"]) for c in choices] == [
        (1, {"role": "assistant", "content": ""}, None),
        (1, {"content": "a"}, None),
        (1, {"content": "b"}, None),
        (1, {}, "stop"),
        (0, {"role": "assistant", "content": ""}, None),
        (0, {}, "length"),
    ]


@pytest.mark.parametrize("fields", [{"logprobs": True}, {"return_token_ids": True}])
def test_the_last_tokens_come_before_the_end(fields: dict[str, Any]) -> None:
    found = rendering(parses=True, **fields)
    token = TokenLogprobs(7, -1.0, 1, ())
    last = Piece(0, "x", "stop", token_ids=[7], logprobs=[token])
    _role, text, end = events(found.chunk(last))
    chosen = text["choices"][0]
    assert chosen["delta"] == {"content": "x"}
    if "logprobs" in fields:
        assert len(chosen["logprobs"]["content"]) == 1
    else:
        assert chosen["token_ids"] == [7]
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({}, "stop")


def test_named_tokens_have_the_sampled_one_beside_them() -> None:
    found = rendering(logprobs=True, logprob_token_ids=[8], return_tokens_as_token_ids=True)
    token = TokenLogprobs(7, -1.0, 1, ((8, -2.0),))
    text = parsed(found.chunk(Piece(0, "x", token_ids=[7], logprobs=[token])))
    (position,) = text["choices"][0]["logprobs"]["content"]
    assert [top["token"] for top in position["top_logprobs"]] == ["token_id:7", "token_id:8"]
    assert token.with_sampled().with_sampled() == token.with_sampled()


@pytest.mark.parametrize("usage", [False, True])
def test_only_a_stream_with_usage_speaks_of_it(usage: bool) -> None:
    found = rendering(parses=True, stream_options={"include_usage": usage})
    for piece in (Piece(0, "hello"), Piece(0, "", "stop")):
        assert {"usage" in event for event in events(found.chunk(piece))} == {usage}


@pytest.mark.parametrize("parses", [False, True])
def test_each_event_may_have_the_usage_so_far(parses: bool) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = rendering(parses=parses, stream_options=options)
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    # The role comes before any token.
    before = {"prompt_tokens": 2, "completion_tokens": 0, "total_tokens": 2}
    first, last = Piece(0, "hello", usage=usage), Piece(0, "", "stop", usage=usage)
    assert [event["usage"] for event in events(found.chunk(first))] == [before, usage]
    assert [event["usage"] for event in events(found.chunk(last))] == [usage]
    closing = found.closing(usage)
    assert closing.endswith(DONE)
    assert events(closing.removesuffix(DONE))[-1]["usage"] == usage


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
    assert (choice["delta"], choice["token_ids"]) == ({"content": ""}, [7])


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
