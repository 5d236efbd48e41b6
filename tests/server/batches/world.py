"""Fixtures for batches: input lines, and a client that waits for a batch's end."""

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import openai
from openai.types import Batch

from tests.server.world import MODEL, PATIENCE_S, Daemon

ENDED = ("failed", "completed", "expired", "cancelled")


def line(custom_id: str, prompt: Any = "hi", **fields: Any) -> str:
    """One line of an input file."""
    body = {"model": MODEL, "prompt": prompt} | fields
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}
    )


def chat_line(custom_id: str, text: str = "hi", **fields: Any) -> str:
    """One line of an input file, for chat."""
    messages = [{"role": "user", "content": text}]
    body = {"model": MODEL, "messages": messages} | fields
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    )


def lines(count: int, **fields: Any) -> str:
    """An input file of `count` requests: "r0", "r1" and so on."""
    return "".join(line(f"r{i}", **fields) + "\n" for i in range(count))


def official(daemon: Daemon) -> openai.OpenAI:
    """The official client; use it as a context."""
    return openai.OpenAI(
        base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    )


def begin(client: openai.OpenAI, content: str, **fields: Any) -> Batch:
    """A batch of this input."""
    file = client.files.create(file=("in.jsonl", content.encode()), purpose="batch")
    return client.batches.create(
        **{"endpoint": "/v1/completions", "completion_window": "24h"} | fields,
        input_file_id=file.id,
    )


def wait_for(client: openai.OpenAI, batch_id: str, *statuses: str) -> Batch:
    """The batch, once it has one of these statuses."""
    deadline = time.monotonic() + PATIENCE_S
    while (batch := client.batches.retrieve(batch_id)).status not in statuses:
        assert time.monotonic() < deadline, f"it is {batch.status}, not {statuses}"
        time.sleep(0.01)
    return batch


def wait_ended(client: openai.OpenAI, batch_id: str) -> Batch:
    """The batch, once it has ended."""
    return wait_for(client, batch_id, *ENDED)


def read(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """A file of answers by custom_id, each of which must occur once."""
    return {} if file_id is None else by_custom_id(client.files.content(file_id).text)


def by_custom_id(text: str) -> dict[str, Any]:
    """Answers by custom_id, each of which must occur once."""
    answers = [json.loads(text_line) for text_line in text.splitlines()]
    assert len({answer["custom_id"] for answer in answers}) == len(answers)
    return {answer["custom_id"]: answer for answer in answers}


def contents(folder: Path) -> set[str]:
    """The names of all contents in a data folder."""
    return {path.name for path in folder.glob("batches/*/files/*")}


def refuse_to_commit(connection: sqlite3.Connection) -> None:
    """Make every COMMIT fail from now on, as on a full disk."""

    def authorize(action: int, word: str | None, *_: str | None) -> int:
        is_commit = action == sqlite3.SQLITE_TRANSACTION and word == "COMMIT"
        return sqlite3.SQLITE_DENY if is_commit else sqlite3.SQLITE_OK

    connection.set_authorizer(authorize)
