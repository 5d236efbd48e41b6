"""Talks to a daemon: all conversations at once, as chats, with or without streams."""

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai

from benchmarks.conversations.reference import Message

NUM_TOPS = 5


@dataclass(slots=True, frozen=True)
class Turn:
    """What was sent, and what the daemon answered.

    `logprobs` are of each output token: its own, and the most likely ones, in descending order.
    """

    messages: list[Message]
    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[tuple[float, list[float]]] = field(default_factory=list)


@dataclass(slots=True)
class Talk:
    """A way of talking to the daemon at `url`."""

    url: str
    max_tokens: int

    async def all(self, conversations: Sequence[Sequence[str]]) -> list[list[Turn]]:
        """Every conversation, at the same time."""
        async with self.client() as client:
            return await asyncio.gather(*(self._one(client, says) for says in conversations))

    def client(self) -> openai.AsyncOpenAI:
        """A client that does not retry on its own."""
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=600
        )

    async def _one(self, client: openai.AsyncOpenAI, says: Sequence[str]) -> list[Turn]:
        messages: list[Message] = []
        turns = []
        for text in says:
            messages.append({"role": "user", "content": text})
            turn, answer = await self.answer(client, list(messages))
            turns.append(turn)
            messages.append({"role": "assistant", "content": answer})
        return turns

    async def answer(self, client: openai.AsyncOpenAI, messages: list[Message]) -> tuple[Turn, str]:
        """One turn and its text, in one piece and with log-probabilities."""
        whole: Any = await client.chat.completions.create(
            **self.body(messages), logprobs=True, top_logprobs=NUM_TOPS
        )
        (choice,) = whole.choices
        logprobs = [
            (token.logprob, [top.logprob for top in token.top_logprobs])
            for token in choice.logprobs.content
        ]
        turn = Turn(messages, whole.prompt_token_ids, choice.token_ids, logprobs)
        return turn, choice.message.content

    def body(self, messages: list[Message]) -> dict[str, Any]:
        """The fields of every request."""
        return {
            "model": "model",
            "messages": messages,
            "temperature": 0,
            "max_completion_tokens": self.max_tokens,
            "extra_body": {"return_token_ids": True},
        }


@dataclass(slots=True)
class TalkThroughDeath(Talk):
    """Streams all conversations, and kills a stage when `kill_after` tokens have been received."""

    stage: int
    kill_after: int
    num_received: int = 0
    num_open: int = 0
    open_at_death: int = -1  # streams in the middle of their answer when the stage was killed

    async def answer(self, client: openai.AsyncOpenAI, messages: list[Message]) -> tuple[Turn, str]:
        """One turn and its text, as a stream."""
        prompt_token_ids: list[int] = []
        token_ids: list[int] = []
        text = ""
        async for piece in await client.chat.completions.create(**self.body(messages), stream=True):
            prompt_token_ids = getattr(piece, "prompt_token_ids", None) or prompt_token_ids
            for choice in piece.choices:
                own = getattr(choice, "token_ids", None) or []
                self.num_open += bool(own) and not token_ids
                token_ids += own
                text += choice.delta.content or ""
                await self._received(len(own))
        self.num_open -= bool(token_ids)
        return Turn(messages, prompt_token_ids, token_ids), text

    async def _received(self, count: int) -> None:
        self.num_received += count
        if self.open_at_death < 0 and self.num_received >= self.kill_after:
            self.open_at_death = self.num_open
            async with httpx.AsyncClient() as client:
                health = (await client.get(f"{self.url}/health")).json()
            (pid,) = (one["pid"] for one in health["stages"] if one["stage"] == self.stage)
            os.kill(pid, signal.SIGKILL)
