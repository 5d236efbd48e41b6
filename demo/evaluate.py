"""The share of held-out tasks that the checkpoint answers exactly: `python -m demo.evaluate`."""

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.tasks import Task, held_out, loosely

# An answer that exceeds the right one by this much is wrong anyway: generation stops there.
_SPARE_TOKENS = 4


def main() -> None:
    """Print exact accuracy, overall and per kind, of greedy answers in bfloat16."""
    options = _options()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tasks = held_out(options.count, options.seed)
    rng = random.Random(options.seed)
    prompts = [loosely(task.prompt, rng) if options.loosely else task.prompt for task in tasks]
    texts = answers(model, tokenizer, prompts, tasks, options.batch)
    print(accuracy_table(tasks, texts))
    if options.wrong:
        _print_wrong(tasks, texts)


def answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], tasks: Sequence[Task], batch: int = 32
) -> list[str]:
    """The model's greedy answer to each prompt; `tasks` only limit the answers' lengths."""
    lengths = [len(tokenizer(task.answer).input_ids) + 1 for task in tasks]
    texts = [""] * len(tasks)
    for rows in _batches(lengths, batch):
        limit = max(lengths[i] for i in rows) + _SPARE_TOKENS
        given = _generate(model, tokenizer, [prompts[i] for i in rows], limit)
        for i, text in zip(rows, given, strict=True):
            texts[i] = text
    return texts


def accuracy_table(tasks: Sequence[Task], texts: Sequence[str]) -> str:
    """A Markdown table: kind, tasks, exactly right, percent; the last line is the total."""
    right: dict[str, list[bool]] = defaultdict(list)
    for task, text in zip(tasks, texts, strict=True):
        right[task.name].append(text == task.answer)
    right["all"] = [hit for hits in right.values() for hit in hits]
    lines = ["| kind | tasks | right | % |", "|---|---:|---:|---:|"]
    for name, hits in right.items():
        share = 100 * sum(hits) / len(hits)
        lines.append(f"| {name} | {len(hits)} | {sum(hits)} | {share:.1f} |")
    return "\n".join(lines)


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of like answer length, so that short answers do not wait for long ones."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.inference_mode()
def _generate(model: Any, tokenizer: Any, prompts: list[str], limit: int) -> list[str]:
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    ids = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        max_new_tokens=limit,
        do_sample=False,
    )  # [prompts, longest prompt + longest answer]
    new = ids[:, inputs.input_ids.shape[1] :]
    texts: list[str] = tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def _print_wrong(tasks: Sequence[Task], texts: Sequence[str]) -> None:
    for task, text in zip(tasks, texts, strict=True):
        if text != task.answer:
            print(f"{task.prompt!r}\n  right: {task.answer!r}\n  given: {text!r}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--count", type=int, default=500, help="held-out tasks to ask")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--loosely", action="store_true", help="word the prompts loosely")
    parser.add_argument("--wrong", action="store_true", help="also print each wrong answer")
    return parser.parse_args()


if __name__ == "__main__":
    main()
