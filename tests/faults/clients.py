"""The clients: streams that record when each of their tokens arrived and how they ended."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from demo.tasks import held_out
from tests.faults.cells import Moment

DECODED_TOKENS = 20  # of each, in the moment "decode"
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Size:
    """The load; `num_tasks` of a conversation are some 28 tokens each, and ahead of all.

    A batch's answers come one after the other, `tokens_apart`.
    """

    num_streams: int
    num_tasks: int
    max_tokens: int
    batch_size: int
    tokens_apart: int = 8


FULL = Size(num_streams=12, num_tasks=14, max_tokens=160, batch_size=40)
"""The size that docs/reliability.md reports."""

SMALL = Size(num_streams=8, num_tasks=7, max_tokens=80, batch_size=16)


def bodies(size: Size = FULL) -> list[dict[str, Any]]:
    """Long prompts; a third of the answers are drawn, with a seed, and the rest greedy."""
    tasks = held_out(size.num_streams * size.num_tasks, seed=29)
    conversations = [tasks[i :: size.num_streams] for i in range(size.num_streams)]
    return [
        {
            "model": "tdpipe-demo",
            "prompt": "".join(f"{task.prompt}{task.answer}<|end|>" for task in conversation),
            "max_tokens": size.max_tokens,
            "ignore_eos": True,
            "skip_special_tokens": False,  # so that each token is news
            "stream": True,
            "temperature": 0.7 if i % 3 == 0 else 0.0,
            "seed": i,
        }
        for i, conversation in enumerate(conversations)
    ]


class Stream:
    """One request and its answer. `ends` has exactly one entry when all is well."""

    def __init__(self, body: dict[str, Any], on_token: Callable[[], None]) -> None:
        self._body, self._on_token = body, on_token
        self.text = ""
        self.arrivals: list[float] = []
        self.ends: list[str] = []
        self.num_done = 0

    async def run(self, client: httpx.AsyncClient) -> None:
        """Until the server has sent everything, or is gone."""
        try:
            async with client.stream("POST", "/v1/completions", json=self._body) as answer:
                async for line in answer.aiter_lines():
                    self._take(line)
        except httpx.HTTPError as error:
            self.ends.append(f"connection: {type(error).__name__}")
        self._on_token()

    def _take(self, line: str) -> None:
        _, _, data = line.partition("data: ")
        if data == "[DONE]":
            self.num_done += 1
            return
        event = {}
        with suppress(ValueError):
            event = json.loads(data or line or "{}")
        if "error" in event:
            self.ends.append(f"error: {event['error']['message']}")
        for choice in event.get("choices", ()):
            self.text += choice["text"]
            self.arrivals.append(time.monotonic())
            if choice["finish_reason"] is not None:
                self.ends.append(choice["finish_reason"])
        self._on_token()


class MomentPassedError(AssertionError):
    """A stream has ended before the moment came."""


class Clients:
    """Streams that begin together; start it within `async with`, which ends when all have."""

    def __init__(self, url: str, asked: list[dict[str, Any]], uds: Path | None = None) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(uds)) if uds else None
        self._client = httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, transport=transport)
        self._news = asyncio.Event()
        self.streams = [Stream(body, self._news.set) for body in asked]
        self.began_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Clients":
        self.began_at = time.monotonic()
        self._tasks = [asyncio.create_task(stream.run(self._client)) for stream in self.streams]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for task in self._tasks:
            if kind is not None:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    async def reach(self, moment: Moment) -> None:
        """Wait for the moment; raises `MomentPassedError` where it has passed."""
        async with asyncio.timeout(TIMEOUT_S):
            while not self._has_come(moment) and not any(s.ends for s in self.streams):
                self._news.clear()
                await self._news.wait()
        if any(stream.ends for stream in self.streams):
            raise MomentPassedError

    def _has_come(self, moment: Moment) -> bool:
        counts = [len(stream.arrivals) for stream in self.streams]
        if moment == "prefill":
            return max(counts) > 0
        if moment == "switch":
            return min(counts) > 0
        return min(counts) >= DECODED_TOKENS

    @property
    def texts(self) -> list[str]:
        """The text of each."""
        return [stream.text for stream in self.streams]

    @property
    def progress(self) -> list[float]:
        """When anything arrived, from the beginning on."""
        return sorted([self.began_at, *(at for s in self.streams for at in s.arrivals)])


async def run_clients(url: str, asked: list[dict[str, Any]], uds: Path | None = None) -> Clients:
    """One run from beginning to end."""
    async with Clients(url, asked, uds) as clients:
        pass
    return clients
