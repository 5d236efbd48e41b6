"""Asks a served app for responses, over HTTP."""

import json
from typing import Any

import httpx

from tests.server.world import MODEL, Daemon

TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}
OTHER = {"type": "function", "name": "get_time", "parameters": None, "strict": None}


def post(daemon: Daemon, **body: Any) -> httpx.Response:
    url = f"{daemon.url}/v1/responses"
    return daemon.http.post(url, json={"model": MODEL, "input": "hi"} | body)


def whole(daemon: Daemon, **body: Any) -> Any:
    """The whole response."""
    response = post(daemon, **body)
    assert response.status_code == 200, response.text
    return response.json()


def stream(daemon: Daemon, **body: Any) -> list[Any]:
    """The events of a stream, which are numbered and name their types twice."""
    response = post(daemon, stream=True, **body)
    assert response.status_code == 200, response.text
    events = []
    for event in response.text.removesuffix("\n\n").split("\n\n"):
        kind, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def summed(events: list[Any]) -> list[Any]:
    """The output items that the deltas of a stream add up to."""
    items: list[Any] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            assert event["item"]["status"] == "in_progress"
            items.append(event["item"])
        elif "output_index" in event:
            item = items[event["output_index"]]
            assert event.get("item_id", item["id"]) == item["id"]
            _apply(item, kind, event)
    return items


def _apply(item: Any, kind: str, event: Any) -> None:
    match kind:
        case "content_part.added":
            assert event["content_index"] == len(item["content"])
            item["content"].append(event["part"])
        case "output_text.delta":
            item["content"][0]["text"] += event["delta"]
            item["content"][0]["logprobs"] += event["logprobs"]
        case "reasoning_text.delta":
            item["content"][0]["text"] += event["delta"]
        case "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        case "output_text.done":
            assert event["text"] == item["content"][0]["text"]
            assert event["logprobs"] == item["content"][0]["logprobs"]
        case "reasoning_text.done":
            assert event["text"] == item["content"][0]["text"]
        case "content_part.done":
            assert event["part"] == item["content"][0]
        case "function_call_arguments.done":
            assert event["arguments"] == item["arguments"]
            assert event["name"] == item["name"]
        case "output_item.done":
            item["status"] = event["item"]["status"]
            assert event["item"] == item
        case _:
            raise AssertionError(kind)


def error(daemon: Daemon, **body: Any) -> dict[str, Any]:
    response = post(daemon, **body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error
