"""Answers that go on in another daemon are those of an undisturbed one: tokens and all.

The other daemon is the same one, which does not know the request any more.
"""

from collections.abc import Callable
from typing import Any

import pytest

from tests import resuming
from tests.end_to_end.daemon import Daemon
from tests.resuming import Events, events_of, read_chunks, resumed
from tests.server.openai import responding

MODEL = "tdpipe-demo"
COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
COUNT = "Count to seven in words.\n"
USER = {"role": "user", "content": COUNT}
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99}, "name": {"enum": ["one", "two"]}},
    "required": ["a", "name"],
    "additionalProperties": False,
}
ADD = {"name": "add", "parameters": PARAMETERS}
DRAWN = {"temperature": 1.3, "seed": 11, "top_p": 0.95, "presence_penalty": 0.4}

TEXTS: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": COUNT, "stream_options": {"include_usage": True}}),
    (COMPLETIONS, {"prompt": COUNT, "max_tokens": 5}),
    (COMPLETIONS, {"prompt": COUNT, "stop": ["five s", "ix"]}),
    (COMPLETIONS, {"prompt": COUNT, "logprobs": 2}),
    (COMPLETIONS, {"prompt": COUNT, "n": 2, "max_tokens": 12} | DRAWN),
    (COMPLETIONS, {"prompt": [COUNT, 'Repeat "你好 🙂" 2 times.\n'], "max_tokens": 12}),
    (COMPLETIONS, {"prompt": COUNT, "structured_outputs": {"regex": "[a-c ]{12}"}}),
    (COMPLETIONS, {"prompt": COUNT, "bad_words": ["four"], "min_tokens": 9, "max_tokens": 16}),
    (CHAT, {"messages": [USER], "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"messages": [USER], "n": 2, "max_tokens": 12} | DRAWN),
    (
        CHAT,
        {
            "messages": [USER],
            "tools": [{"type": "function", "function": ADD}],
            "tool_choice": "required",
            "max_tokens": 40,
        },
    ),
]
RESPONDED: list[dict[str, Any]] = [
    {},
    {"max_output_tokens": 4},
    {"tools": [{"type": "function", "strict": True} | ADD], "tool_choice": "required"},
    {"stop": ["five"]},
]


def cut_everywhere(
    daemon: Daemon, path: str, body: dict[str, Any], summed: Callable[[Events], Any]
) -> None:
    """Compare the answer with those that were cut after each chunk."""
    body = {"model": MODEL, "stream": True, "temperature": 0} | body
    chunks = read_chunks(daemon.url, path, body)
    whole, figures = apart(summed(events_of(chunks)))
    assert len(chunks) > 1
    for number in range(1, len(chunks)):
        begun = events_of(chunks[:number])
        other, others = apart(summed([*begun, *resumed(daemon.url, path, body, begun)]))
        assert other == whole, begun
        assert others == pytest.approx(figures, abs=1e-3)


def apart(value: Any) -> tuple[Any, list[float]]:
    """A value without its fractions, and these."""
    if isinstance(value, float):
        return None, [value]
    if isinstance(value, dict):
        items = {key: apart(each) for key, each in value.items()}
        return (
            {key: rest for key, (rest, _) in items.items()},
            [figure for _, figures in items.values() for figure in figures],
        )
    if isinstance(value, list | tuple):
        each = [apart(item) for item in value]
        return [rest for rest, _ in each], [figure for _, figures in each for figure in figures]
    return value, []


def the_same(events: Events) -> Any:
    """What the events add up to, without what is new for each request."""
    answer = resuming.summed(events)
    assert len(answer.pop("heads")) == 1
    return answer


def the_response(events: Events) -> Any:
    """The response of the last event, if the numbered events before it add up to it."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response = events[-1]["response"]
    assert responding.summed(events) == response["output"]
    items = [
        {key: value for key, value in item.items() if key not in ("id", "call_id")}
        for item in response["output"]
    ]
    del response["usage"]["input_tokens_details"]
    shown = ("status", "incomplete_details", "usage", "object", "temperature")
    return items, {key: response[key] for key in shown}


@pytest.mark.parametrize(("path", "fields"), TEXTS)
def test_completions_and_chats_go_on(tight: Daemon, path: str, fields: dict[str, Any]) -> None:
    limit = {"max_tokens": 40} if path == COMPLETIONS else {}
    cut_everywhere(tight, path, limit | fields, the_same)


@pytest.mark.parametrize("fields", RESPONDED)
def test_responses_go_on(tight: Daemon, fields: dict[str, Any]) -> None:
    cut_everywhere(tight, RESPONSES, {"input": COUNT} | fields, the_response)
