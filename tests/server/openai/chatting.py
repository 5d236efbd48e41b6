"""Chats with a served app, over HTTP."""

from array import array
from typing import Any

import httpx

from tests.server.world import MODEL, TOKENIZER, Daemon, events
from wire.messages import Submit

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "get_time"}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
OTHER_CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


def post(daemon: Daemon, **body: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "hi"}]
    url = f"{daemon.url}/v1/chat/completions"
    return daemon.http.post(url, json={"model": MODEL, "messages": messages} | body)


def choice(daemon: Daemon, **body: Any) -> Any:
    """The one choice of a whole answer."""
    response = post(daemon, **body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice


def stream(daemon: Daemon, **body: Any) -> list[Any]:
    """The events of a stream."""
    response = post(daemon, stream=True, **body)
    assert response.status_code == 200, response.text
    return events(response)


def summed(chunks: list[Any]) -> dict[str, Any]:
    """A stream's one choice as a whole answer has it."""
    message: dict[str, Any] = {"content": ""}
    ending: dict[str, Any] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            delta = part["delta"]
            message["role"] = delta.get("role", message.get("role"))
            for field in ("content", "reasoning_content", "reasoning"):
                if field in delta:
                    message[field] = message.get(field, "") + delta[field]
            for call in delta.get("tool_calls", []):
                calls = message.setdefault("tool_calls", [])
                if "id" in call:
                    assert call.pop("index") == len(calls)
                    calls.append(call)
                else:
                    function = calls[call["index"]]["function"]
                    function["arguments"] += call["function"]["arguments"]
            ending |= {key: part[key] for key in ("finish_reason", "stop_reason") if key in part}
    return {"message": message} | ending


def submitted(daemon: Daemon, **body: Any) -> Submit:
    """What the engine received for one request."""
    before = len(daemon.engine.wait_for(Submit, 0))
    assert post(daemon, **body).status_code == 200
    (submit,) = daemon.engine.wait_for(Submit, before + 1)[before:]
    assert isinstance(submit, Submit)
    return submit


def prompt_of(submit: Submit) -> str:
    return TOKENIZER.decode(array("i", submit.prompt_token_ids).tolist())


def error(daemon: Daemon, **body: Any) -> dict[str, Any]:
    response = post(daemon, **body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error
