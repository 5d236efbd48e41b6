"""The events of a response, built without a model: however its text is split."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat.call_formats import HERMES
from server.chat.message_parser import MessageParser
from server.chat.reasoning import ReasoningSplitter
from server.chat.tool_calls import CallParser
from server.http.errors import ApiError, failed
from server.openai.fields.responses import ResponsesRequest
from server.openai.rendering.responses import ResponsesRendering
from server.openai.routes.responses import in_own_words
from server.requests.generation import Piece
from server.requests.logprobs import TokenLogprobs
from server.requests.planning.plan import Plan
from tests.server.openai.chatting import CALL, OTHER_CALL
from tests.server.openai.responding import summed
from tests.server.splitting import PLACES, cut
from tests.server.world import TOKENIZER

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
TEXTS = ["", "hello €", "<think>Well.</think>\n\nhello", f"<think>Well.</think>\nSo. {CALL}"]


def rendering(*, parses: bool = True, **fields: Any) -> ResponsesRendering:
    request = ResponsesRequest.model_validate({"model": "m", "input": "hi"} | fields)

    def parser() -> MessageParser:
        return MessageParser(ReasoningSplitter(), CallParser(HERMES, {"add": {}, "get_time": {}}))

    plan = Plan([[1, 2]], 1, [9], model="m")
    return ResponsesRendering(request, plan, TOKENIZER, parser if parses else None)


def parsed(events: bytes) -> list[Any]:
    return [
        json.loads(event.split(b"\ndata: ")[1]) for event in events.split(b"\n\n") if event.strip()
    ]


def streamed(pieces: list[str], **fields: Any) -> list[Any]:
    """The events of the items of a stream in these pieces."""
    found = rendering(**fields)
    *parts, last = pieces
    events = b"".join(found.chunk(Piece(0, part)) for part in parts)
    return parsed(events + found.chunk(Piece(0, last, "stop")))


def without_ids(items: list[Any]) -> list[Any]:
    return [{key: item[key] for key in item if key not in ("id", "call_id")} for item in items]


@settings(deadline=None)
@given(st.sampled_from([*TEXTS, f"{CALL}\n{OTHER_CALL}"]), PLACES)
def test_a_stream_in_any_pieces_adds_up_to_the_whole_answer(text: str, places: list[int]) -> None:
    found = rendering()
    found.take(Piece(0, text, "stop"))
    whole = json.loads(found.whole(USAGE))["output"]
    events = streamed([*cut(text, places), ""])
    assert without_ids(summed(events)) == without_ids(whole)


def test_all_events_for_new_text_have_the_same_fields() -> None:
    events = streamed(["he", "l", '"lo" €\n', "."], parses=False)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [event.pop("delta") for event in deltas] == ["he", "l", '"lo" €\n', "."]
    numbers = [event.pop("sequence_number") for event in deltas]
    assert all(b - a == 1 for a, b in pairwise(numbers))
    assert deltas == [deltas[0]] * 4


def test_text_after_a_call_is_another_message() -> None:
    items = summed(streamed(["Before ", CALL, " after", ""]))
    assert [item["type"] for item in items] == ["message", "function_call", "message"]
    assert [items[i]["content"][0]["text"] for i in (0, 2)] == ["Before", "  after"]


@settings(deadline=None)
@given(st.sampled_from(TEXTS), PLACES)
def test_log_probabilities_belong_to_their_deltas(text: str, places: list[int]) -> None:
    token_ids = TOKENIZER.encode(text)
    ends = sorted({place % (len(token_ids) + 1) for place in places} | {0, len(token_ids)})
    detokenizer = TOKENIZER.detokenizer(
        skip_special_tokens=True, after=TOKENIZER.prompt_end([1, 2], skip_special_tokens=True)
    )
    found = rendering(include=["message.output_text.logprobs"])
    events = b""
    for begin, end in pairwise(ends):
        some = token_ids[begin:end]
        piece = "".join(map(detokenizer.push, some))
        events += found.chunk(Piece(0, piece, logprobs=list(map(certain, some))))
    events += found.chunk(Piece(0, detokenizer.flush(), "stop", logprobs=[certain(0)]))
    for event in parsed(events):
        if event["type"] == "response.output_text.delta":
            assert event["delta"].strip() in _spelt(event["logprobs"]) or not event["logprobs"]
        if event["type"] == "response.output_text.done":
            assert _spelt(event["logprobs"]).strip() == event["text"].strip()


def certain(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(token_id, -0.0, 1, ())


def _spelt(logprobs: list[Any]) -> str:
    return b"".join(bytes(token["bytes"]) for token in logprobs).decode("utf-8", "replace")


def test_a_failed_stream_ends_with_what_there_was() -> None:
    found = rendering()
    events = parsed(found.opening() + found.chunk(Piece(0, "hel")) + found.failure(failed("No.")))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    error, last = events[-2:]
    assert (error["type"], error["message"]) == ("error", "No.")
    assert last["response"]["error"] == {"code": "server_error", "message": "No."}
    assert (last["response"]["status"], last["response"]["usage"]) == ("failed", None)


def test_the_token_counts_have_other_names() -> None:
    found = rendering()
    details = {"prompt_tokens_details": {"cached_tokens": 1}}
    details |= {"completion_tokens_details": {"reasoning_tokens": 2}}
    assert json.loads(found.whole(USAGE | details))["usage"] == {
        "input_tokens": 1,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 3,
    }


@pytest.mark.parametrize(
    ("param", "own"),
    [
        ("messages", "input"),
        ("messages[0].content", "input"),
        ("max_tokens", "max_output_tokens"),
        ("max_completion_tokens", "max_output_tokens"),
        ("response_format", "text.format"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("tools[12].function.parameters", "tools[12].parameters"),
        ("reasoning_effort", "reasoning.effort"),
        ("temperature", "temperature"),
    ],
)
def test_errors_name_the_fields_of_this_endpoint(param: str, own: str) -> None:
    headers = {"retry-after": "1"}
    error = ApiError(429, f"'{param}' isn't it.", param=param, code="c", headers=headers)
    renamed = error.renamed(in_own_words)
    assert renamed.details == {"message": f"'{own}' isn't it.", "param": own, "code": "c"}
    assert (renamed.status, renamed.headers) == (429, headers)
