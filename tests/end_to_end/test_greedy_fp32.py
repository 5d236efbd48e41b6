"""In fp32 the daemon's greedy tokens are transformers' own, for many architectures."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoTokenizer

from configs.schema.model import DEMO_MODEL
from demo.tasks import held_out
from tests.checkpoints import TOKENIZER, make_checkpoint
from tests.end_to_end.asking import ask_at_once, random_prompts
from tests.end_to_end.daemon import Daemon
from tests.end_to_end.reference import Reference
from tests.workers.model.test_rope import make as make_with_rope

NEAR_TIE = 1e-4
MAX_TOKENS = 24
LENGTHS = (1, 2, 3, 7, 16, 17, 31, 40, 64, 100, 150, 333)


# All families' stages are compared with the whole model in
# tests/workers/model/test_stage_model.py, and a llama's answers in test_policies.py.
@pytest.mark.parametrize(
    "family",
    [
        "gemma2",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("opt", "llama", "mixtral", "qwen2", "qwen3", "mistral")
        ),
    ],
)
def test_a_random_checkpoint_answers_as_in_transformers(family: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", family, shard_size="300KB")
    prompts = random_prompts(family, LENGTHS)
    arguments = ["--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32"]
    # The two longest prompts go in chunks.
    arguments += ["--device", "cpu", "--max-num-batched-tokens", "128"]
    with Daemon(tmp_path, str(checkpoint), *arguments) as daemon:
        outputs = ask_at_once(daemon, prompts, MAX_TOKENS)
    reference = Reference(checkpoint, torch.float32)
    near_ties = reference.num_near_ties_of_all(prompts, outputs, NEAR_TIE)
    assert near_ties <= 1, f"{near_ties} near-ties in {len(prompts)} answers"


# Phi-3 recomputes a sequence that outgrows the original length of 48 tokens.
@pytest.mark.parametrize(
    "case", ["phi3-longrope", pytest.param("llama-dynamic", marks=pytest.mark.long)]
)
def test_rope_scaling_is_that_of_generate_across_the_original_length(
    case: str, tmp_path: Path
) -> None:
    checkpoint = make_with_rope(tmp_path / "model", case)
    prompts = random_prompts(case, (5, 30, 40, 47, 48, 49, 100, 150))
    arguments = ["--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32"]
    arguments += ["--device", "cpu", "--max-num-batched-tokens", "32", "--max-model-len", "192"]
    with Daemon(tmp_path, str(checkpoint), *arguments) as daemon:
        outputs = ask_at_once(daemon, prompts, MAX_TOKENS)
    for prompt, got in zip(prompts, outputs, strict=True):
        # A fresh model for each: dynamic RoPE keeps state in it.
        assert got == Reference(checkpoint, torch.float32).generate(prompt, MAX_TOKENS)


def test_the_demo_model_answers_as_in_transformers(lasting: Daemon) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    prompts = [tokenizer(task.prompt)["input_ids"] for task in held_out(24, seed=3)]

    async def ask() -> list[tuple[str, list[int]]]:
        async with lasting.async_client() as client:
            return await asyncio.gather(*(answer(client, prompt) for prompt in prompts))

    answers = asyncio.run(ask())
    reference = Reference(DEMO_MODEL, torch.float32)
    for prompt, (text, token_ids) in zip(prompts, answers, strict=True):
        assert len(token_ids) == MAX_TOKENS
        assert reference.num_near_ties(prompt, token_ids, NEAR_TIE) == 0
        assert text == tokenizer.decode(token_ids, skip_special_tokens=True)
    assert reference.generate(prompts[0], MAX_TOKENS) == answers[0][1]


async def answer(client: openai.AsyncOpenAI, prompt: list[int]) -> tuple[str, list[int]]:
    """Text and ids of greedy tokens, whatever they are."""
    whole: Any = await client.completions.create(
        model="tdpipe-demo",
        prompt=prompt,
        max_tokens=MAX_TOKENS,
        temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    return whole.choices[0].text, whole.choices[0].token_ids
