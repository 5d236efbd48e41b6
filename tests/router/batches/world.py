"""Batches for the tests of a router: lines, daemons that answer them, and the official client."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import openai
from openai.types import Batch

from tests.router.world import MODEL, PATIENCE_S, Asked, FakeDaemon, World

ENDED = ("failed", "completed", "expired", "cancelled")


def line(custom_id: str, **fields: Any) -> str:
    """One line of an input file; the prompt is its id."""
    body = {"model": MODEL, "prompt": custom_id} | fields
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}
    )


def lines(count: int) -> str:
    """An input file of `count` requests: "r0", "r1" and so on."""
    return "".join(line(f"r{i}") + "\n" for i in range(count))


def answer_to(asked: Asked) -> dict[str, Any]:
    """The body of an answer, which repeats the prompt."""
    choice = {"index": 0, "text": asked.json["prompt"], "finish_reason": "stop"}
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    return {"id": f"cmpl-{asked.json['prompt']}", "choices": [choice], "usage": usage}


async def echoes(asked: Asked) -> None:
    """A script: an answer at once."""
    await asked.answer(answer_to(asked))


class Gate:
    """A script that answers after `open` was set, and counts who waits."""

    def __init__(self, num_at_once: int = 0) -> None:
        self.open = asyncio.Event()
        self.num_at_once = num_at_once
        self.num_waiting = 0

    async def __call__(self, asked: Asked) -> None:
        """Answer the first ones at once, and the others when the gate is open."""
        if self.num_at_once:
            self.num_at_once -= 1
        else:
            self.num_waiting += 1
            try:
                await self.open.wait()
            finally:
                self.num_waiting -= 1
        await echoes(asked)


def asked_ids(daemons: Iterable[FakeDaemon]) -> Counter[str]:
    """How often these daemons were asked each line."""
    return Counter(asked.json["prompt"] for daemon in daemons for asked in daemon.asked)


@asynccontextmanager
async def client(world: World, key: str = "none") -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, which does not retry, once files and batches are there."""
    async with asyncio.timeout(PATIENCE_S):
        while (await world.ask("/v1/batches")).status == 503:
            await asyncio.sleep(0.01)
    url = f"http://127.0.0.1:{world.port}/v1"
    async with openai.AsyncOpenAI(
        base_url=url, api_key=key, max_retries=0, timeout=PATIENCE_S
    ) as api:
        yield api


async def begin(api: openai.AsyncOpenAI, content: str, **fields: Any) -> Batch:
    """A batch of this input."""
    file = await api.files.create(file=("in.jsonl", content.encode()), purpose="batch")
    given: Any = {"endpoint": "/v1/completions", "completion_window": "24h"} | fields
    return await api.batches.create(**given, input_file_id=file.id)


async def wait_for(api: openai.AsyncOpenAI, batch_id: str, *statuses: str) -> Batch:
    """The batch, once it has one of these statuses."""
    async with asyncio.timeout(PATIENCE_S):
        while (batch := await api.batches.retrieve(batch_id)).status not in statuses:
            await asyncio.sleep(0.02)
    return batch


async def read(api: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of a file of answers; none without a file."""
    if file_id is None:
        return []
    content = await api.files.content(file_id)
    return [json.loads(each) for each in content.text.splitlines()]


def ids(answers: Iterable[dict[str, Any]]) -> list[str]:
    """The lines that they answer, sorted."""
    return sorted(answer["custom_id"] for answer in answers)
