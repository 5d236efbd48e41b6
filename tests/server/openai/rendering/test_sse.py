"""The events of streams: what is encoded once is what would be encoded each time."""

import json
from typing import Any

import pytest

from server.openai.rendering.sse import EventFrame

HEAD = {"id": "cmpl-1", "model": "little"}


def reported(event: bytes) -> Any:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    return json.loads(event.removeprefix(b"data: "))


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_text_is_rendered_as_any_choice_is(include_usage: bool) -> None:
    frame = EventFrame(HEAD, (b'"delta":{"content":', b"}"), include_usage=include_usage)
    text = 'a "word" €\n'
    choice = {"index": 7, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    usage = {"usage": None} if include_usage else {}
    assert reported(frame.text(7, text)) == reported(frame.choice(choice))
    assert reported(frame.choice(choice)) == HEAD | {"choices": [choice]} | usage


def test_an_event_of_no_choice_returns_something_else() -> None:
    frame = EventFrame(HEAD, (b'"text":', b""), include_usage=True)
    assert reported(frame.no_choice({"usage": {"total_tokens": 3}})) == HEAD | {
        "choices": [],
        "usage": {"total_tokens": 3},
    }
