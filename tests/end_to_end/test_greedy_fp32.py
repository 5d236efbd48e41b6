"""In fp32 the daemon's greedy tokens are transformers' own, for many architectures."""

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from configs.model import DEMO_MODEL
from demo.tasks import held_out
from tests.checkpoints import TOKENIZER, make_checkpoint
from tests.end_to_end.asking import ask_at_once, complete, random_prompts
from tests.end_to_end.daemon import Daemon
from tests.end_to_end.reference import Reference

NEAR_TIE = 1e-4
MAX_TOKENS = 24
LENGTHS = (1, 2, 3, 7, 16, 17, 31, 40, 64, 100, 150, 333)


# All families' stages are compared with the whole model in tests/workers/model/test_stage_model.py.
@pytest.mark.parametrize(
    "family",
    [
        *("llama", "opt", "mixtral", "gemma2"),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("qwen2", "qwen3", "mistral")),
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
    near_ties = 0
    for prompt, got in zip(prompts, outputs, strict=True):
        want = reference.generate(prompt, MAX_TOKENS)
        near_ties += reference.compare(prompt, got, want, NEAR_TIE).near_ties
    assert near_ties <= 1, f"{near_ties} of {len(prompts)} answers ended at a near-tie"


def test_the_demo_model_answers_as_in_transformers(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    prompts = [tokenizer(task.prompt)["input_ids"] for task in held_out(24, seed=3)]

    async def ask(daemon: Daemon) -> list[str]:
        async with daemon.async_client() as client:
            return await asyncio.gather(
                *(complete(client, "tdpipe-demo", prompt, MAX_TOKENS) for prompt in prompts)
            )

    with Daemon(tmp_path, "--dtype", "float32", "--device", "cpu") as daemon:
        texts = asyncio.run(ask(daemon))
    reference = Reference(DEMO_MODEL, torch.float32)
    for prompt, text in zip(prompts, texts, strict=True):
        want = reference.generate(prompt, MAX_TOKENS)
        assert text == tokenizer.decode(want, skip_special_tokens=True)
