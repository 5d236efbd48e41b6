"""In fp32 the daemon's greedy tokens are transformers' own, for many architectures."""

import asyncio
import random
from pathlib import Path

import pytest
import torch

from configs.schema import DEMO_MODEL
from demo.tasks import held_out
from tests.checkpoints import TOKENIZER, VOCABULARY, ids_of, make_checkpoint
from tests.end_to_end.daemon import Daemon
from tests.end_to_end.reference import Reference

NEAR_TIE = 1e-4
MAX_TOKENS = 24


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "qwen3", "opt", "mistral", "mixtral", "gemma2"]
)
def test_a_random_checkpoint_answers_as_in_transformers(family: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", family, shard_size="300KB")
    rng = random.Random(family)
    prompts = [
        [rng.randrange(3, VOCABULARY) for _ in range(length)]
        for length in (1, 2, 3, 7, 16, 17, 31, 40, 64, 100, 150, 333)
    ]
    arguments = ["--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32", "--device", "cpu"]
    with Daemon(tmp_path, str(checkpoint), *arguments) as daemon:
        texts = asyncio.run(complete_all(daemon, prompts))
    reference = Reference(checkpoint, torch.float32)
    near_ties = 0
    for prompt, text in zip(prompts, texts, strict=True):
        want = reference.generate(prompt, MAX_TOKENS)
        near_ties += reference.compare(prompt, ids_of(text), want, NEAR_TIE).near_ties
    assert near_ties <= 1, f"{near_ties} of {len(prompts)} answers ended at a near-tie"


def test_the_demo_model_answers_as_in_transformers(tmp_path: Path) -> None:
    reference = Reference(DEMO_MODEL, torch.float32)
    with Daemon(tmp_path, "--dtype", "float32", "--device", "cpu") as daemon:
        tokenizer = _tokenizer()
        prompts = [tokenizer(task.prompt)["input_ids"] for task in held_out(16, seed=3)]
        texts = asyncio.run(complete_all(daemon, prompts, model="tdpipe-demo"))
    for prompt, text in zip(prompts, texts, strict=True):
        want = reference.generate(prompt, MAX_TOKENS)
        assert text == tokenizer.decode(want, skip_special_tokens=True)


async def complete_all(
    daemon: Daemon, prompts: list[list[int]], model: str = "model"
) -> list[str]:
    """All prompts at once, greedily, `MAX_TOKENS` tokens each."""
    async with daemon.async_client() as client:
        answers = await asyncio.gather(
            *(
                client.completions.create(
                    model=model,
                    prompt=prompt,
                    max_tokens=MAX_TOKENS,
                    temperature=0,
                    extra_body={"ignore_eos": True},
                )
                for prompt in prompts
            )
        )
    return [answer.choices[0].text for answer in answers]


def _tokenizer():  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO_MODEL)
