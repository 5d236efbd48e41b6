"""Resumes streams as the router does: cuts them, and asks for the rest."""

import json
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 30.0
Events = list[dict[str, Any]]


def read_chunks(url: str, path: str, body: dict[str, Any], **headers: str) -> list[bytes]:
    """The chunks of a streamed answer, as the server writes them.

    The body's first member comes first.
    """
    content = json.dumps(body).encode()
    host = urlsplit(url).netloc
    head = {"host": host, "content-type": "application/json", "connection": "close"}
    head |= {"content-length": str(len(content)), "x-tdpipe-resumable": "1"} | headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    with socket.create_connection(host.rsplit(":", 1), TIMEOUT_S) as connection:  # type: ignore[arg-type]
        connection.sendall(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + content)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head_, _, rest = answer.partition(b"\r\n\r\n")
    assert head_.startswith(b"HTTP/1.1 200"), answer
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    assert chunks.pop() == b"", "the answer has no end"
    return chunks


def events_of(chunks: Sequence[bytes]) -> Events:
    """The events in whole chunks."""
    events: Events = []
    for part in b"".join(chunks).split(b"\n\n"):
        for line in part.split(b"\n"):
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                events.append(json.loads(line.removeprefix(b"data: ")))
    return events


def resume_of(events: Events) -> dict[str, Any]:
    """What a router knows of the answer that these events begin."""
    outputs: dict[int, list[int]] = {}
    finished: set[int] = set()
    known: dict[str, Any] = {}
    for event in events:
        if "response" in event:
            response = event["response"]
            known |= {"id": response["id"], "created": response["created_at"]}
        if "sequence_number" in event:
            known["sequence_number"] = event["sequence_number"]
            outputs.setdefault(0, []).extend(event.get("token_ids", ()))
        for choice in event.get("choices", ()):
            known |= {"id": event["id"], "created": event["created"]}
            outputs.setdefault(choice["index"], []).extend(choice.get("token_ids") or ())
            if choice["finish_reason"] is not None:
                finished.add(choice["index"])
    choices = [
        {"index": index, "token_ids": ids, "finished": index in finished}
        for index, ids in outputs.items()
    ]
    return known | {"choices": choices}


def resumed(url: str, path: str, body: dict[str, Any], begun: Events) -> Events:
    """The events after those that the client has got."""
    return events_of(read_chunks(url, path, {"tdpipe_resume": resume_of(begun)} | body))


def summed(events: Events) -> dict[str, Any]:
    """What the events of completions or chats add up to, however their texts were split.

    Ids of calls are new if the call has not begun, and cached tokens are no part of an answer. The
    role may come twice: in an event without tokens, from which a router learns nothing.
    """
    choices: dict[int, dict[str, Any]] = {}
    answer: dict[str, Any] = {"choices": choices}
    for event in events:
        answer.setdefault("heads", set()).add((event["id"], event["created"], event["model"]))
        if event.get("usage"):
            usage = {k: v for k, v in event["usage"].items() if k != "prompt_tokens_details"}
            answer["usage"] = usage
        for part in event["choices"]:
            _add(choices.setdefault(part["index"], {}), part)
    return answer


def _add(choice: dict[str, Any], part: dict[str, Any]) -> None:
    assert "finish_reason" not in choice, "it goes on after its end"
    delta = part.get("delta", {})
    texts = {"text": part.get("text"), "content": delta.get("content")}
    texts |= {"reasoning": delta.get("reasoning")}
    if "role" in delta:
        choice["role"] = delta["role"]
    for name, text in texts.items():
        if text is not None:
            choice[name] = choice.get(name, "") + text
    for name in ("token_ids", "prompt_token_ids"):
        choice.setdefault(name, []).extend(part.get(name) or ())
    for name, column in (part.get("logprobs") or {}).items():
        choice.setdefault(f"logprobs.{name}", []).extend(column or ())
    for call in delta.get("tool_calls", ()):
        calls = choice.setdefault("calls", [])
        if "id" in call:
            assert call["index"] == len(calls)
            calls.append([call["function"]["name"], ""])
        calls[call["index"]][1] += call["function"]["arguments"]
    if part["finish_reason"] is not None:
        choice["finish_reason"] = (part["finish_reason"], part["stop_reason"])
