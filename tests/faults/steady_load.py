"""A steady load: clients that ask one question after the other, and keep all answers."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Self

import httpx
import openai

from demo.tasks import held_out

MODEL = "tdpipe-demo"
TIMEOUT_S = 240.0
RETRY_PAUSE_S = 0.2
NUM_QUESTIONS = 24
NUM_TOKENS = 48

Question = tuple[str, dict[str, Any]]
"""The kind of request (`stream`, `whole` or `chat`), and its body."""


def questions() -> list[Question]:
    """Streams, whole answers and streamed chats in turn; greedy ones, and drawn ones with seeds."""
    tasks = held_out(NUM_QUESTIONS * 3, seed=37)
    asked: list[Question] = []
    for i in range(NUM_QUESTIONS):
        text = "".join(task.prompt for task in tasks[i::NUM_QUESTIONS])
        sampling = {"temperature": 0.0} if i % 2 else {"temperature": 0.9, "seed": i}
        body = {"model": MODEL, "max_tokens": NUM_TOKENS + i, **sampling}
        kind = ("stream", "whole", "chat")[i % 3]
        if kind == "chat":
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = text
        asked.append((kind, body))
    return asked


async def ask(client: openai.AsyncOpenAI, question: Question) -> str:
    """The text of the answer. Raises what the client does."""
    kind, body = question
    more: dict[str, Any] = {"ignore_eos": True}
    if kind == "whole":
        return str((await client.completions.create(**body, extra_body=more)).choices[0].text)
    if kind == "stream":
        parts = await client.completions.create(**body, stream=True, extra_body=more)
        return "".join([choice.text async for part in parts for choice in part.choices])
    chunks = await client.chat.completions.create(**body, stream=True, extra_body=more)
    return "".join([c.delta.content or "" async for chunk in chunks for c in chunk.choices])


async def right_answers(client: openai.AsyncOpenAI, asked: Sequence[Question]) -> list[str]:
    """The answers of an undisturbed daemon."""
    async with client:
        return list(await asyncio.gather(*(ask(client, question) for question in asked)))


class SteadyLoad:
    """`num_clients` clients for the length of an `async with` block, which ends with their answers.

    A client with `retries` asks again if a connection cannot be made, or breaks.
    """

    def __init__(
        self,
        make_client: Callable[[], openai.AsyncOpenAI],
        asked: Sequence[Question],
        num_clients: int = 6,
        *,
        retries: bool = False,
    ) -> None:
        self._make_client, self._asked = make_client, asked
        self._num_clients, self._retries = num_clients, retries
        self._numbers = count()
        self._has_ended = False
        self._news = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self.open: set[int] = set()
        self.answers: dict[int, str] = {}
        self.failures: list[str] = []
        self.num_retries = 0

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._ask_on()) for _ in range(self._num_clients)]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._has_ended = True
        if kind is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def wait_answers(self, number: int) -> None:
        """Wait for so many answers more."""
        enough = len(self.answers) + number
        await self._wait(lambda: len(self.answers) >= enough)

    async def wait_ended(self, numbers: set[int]) -> None:
        """Wait until none of these requests is open."""
        await self._wait(lambda: not self.open & numbers)

    def wrong(self, right: Sequence[str]) -> dict[int, tuple[str, str]]:
        """The answers that differ from the right ones, beside them."""
        pairs = ((i, text, right[i % len(right)]) for i, text in self.answers.items())
        return {i: (text, expected) for i, text, expected in pairs if text != expected}

    async def _wait(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S), self._news:
            await self._news.wait_for(lambda: condition() or bool(self.failures))
        assert not self.failures

    async def _ask_on(self) -> None:
        async with self._make_client() as client:
            while not self._has_ended:
                number = next(self._numbers)
                self.open.add(number)
                try:
                    async with asyncio.timeout(TIMEOUT_S):
                        self.answers[number] = await self._answer(client, number)
                except (openai.OpenAIError, httpx.HTTPError, TimeoutError) as error:
                    self.failures.append(f"{number}: {type(error).__name__}: {error}")
                self.open.discard(number)
                async with self._news:
                    self._news.notify_all()

    async def _answer(self, client: openai.AsyncOpenAI, number: int) -> str:
        while True:
            try:
                return await ask(client, self._asked[number % len(self._asked)])
            except (openai.APIConnectionError, openai.InternalServerError, httpx.HTTPError):
                if not self._retries:
                    raise
                self.num_retries += 1
                await asyncio.sleep(RETRY_PAUSE_S)
