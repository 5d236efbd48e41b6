"""Asking a daemon for greedy completions of token ids."""

import asyncio
import random
from collections.abc import Sequence

import openai

from tests.checkpoints import VOCABULARY, ids_of
from tests.end_to_end.daemon import Daemon


def random_prompts(seed: str, lengths: Sequence[int]) -> list[list[int]]:
    """Prompts of random ids of the random checkpoints' vocabulary."""
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def ask_at_once(daemon: Daemon, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Output ids of all prompts, asked at the same time."""

    async def ask() -> list[str]:
        async with daemon.async_client() as client:
            return await asyncio.gather(
                *(complete(client, "model", prompt, max_tokens) for prompt in prompts)
            )

    return [ids_of(text) for text in asyncio.run(ask())]


def ask_one_by_one(daemon: Daemon, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Output ids of all prompts, each by itself in the daemon."""

    async def ask() -> list[str]:
        async with daemon.async_client() as client:
            return [await complete(client, "model", prompt, max_tokens) for prompt in prompts]

    return [ids_of(text) for text in asyncio.run(ask())]


async def complete(
    client: openai.AsyncOpenAI, model: str, prompt: list[int], max_tokens: int
) -> str:
    """`max_tokens` greedy tokens, whichever they are."""
    answer = await client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    return answer.choices[0].text
