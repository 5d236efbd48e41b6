"""The lengths of the checkpoint's own greedy answers, in tokens, as the daemon would count them."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from demo.tasks import Task

# Prompts with answers that exceed the right one by more are asked again, up to LONGEST_ANSWER.
_SPARE_TOKENS = 4
LONGEST_ANSWER = 512
_AGAIN = 32


def output_lens(model: Any, tokenizer: Any, tasks: Sequence[Task], batch: int = 256) -> list[int]:
    """The length of the greedy answer to each task's prompt, with the end token.

    The right answers only set how long to wait: rows of one batch end at about the same step.
    """
    right = [len(tokenizer(task.answer).input_ids) + 1 for task in tasks]
    lens = [0] * len(tasks)
    with tqdm(total=len(tasks), unit="prompt", desc="answers", disable=None) as bar:
        for rows in _batches(right, batch):
            limit = max(right[i] for i in rows) + _SPARE_TOKENS
            found = _generated_lens(model, tokenizer, [tasks[i].prompt for i in rows], limit)
            for i, length in zip(rows, found, strict=True):
                lens[i] = length
            bar.update(len(rows))
    astray = [i for i, length in enumerate(lens) if not length]
    for start in range(0, len(astray), _AGAIN):
        rows = astray[start : start + _AGAIN]
        prompts = [tasks[i].prompt for i in rows]
        found = _generated_lens(model, tokenizer, prompts, LONGEST_ANSWER)
        for i, length in zip(rows, found, strict=True):
            lens[i] = length or LONGEST_ANSWER
    return lens


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.inference_mode()
def _generated_lens(model: Any, tokenizer: Any, prompts: list[str], limit: int) -> list[int]:
    """Tokens up to the end token, itself included; 0 where there is none within the limit."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    ids = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        max_new_tokens=limit,
        do_sample=False,
    )  # [prompts, longest prompt + limit]
    is_end = ids[:, inputs.input_ids.shape[1] :] == tokenizer.eos_token_id
    first_end = is_end.int().argmax(dim=1) + 1
    lens: list[int] = torch.where(is_end.any(dim=1), first_end, 0).tolist()
    return lens
