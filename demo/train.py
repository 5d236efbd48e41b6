"""Trains the demo checkpoint from scratch on a CPU: `python -m demo.train --minutes 40`."""

import argparse
import copy
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from demo.evaluate import accuracy_table, answers
from demo.tasks import held_out, training_tasks
from demo.tokenizer import build_tokenizer

VOCAB_SIZE = 768
CONTEXT = 2048
# Muon's updates of the layers' matrices are scaled to the size of AdamW's, hence similar rates.
MATRIX_LR = 5e-3
OTHER_LR = 2e-3
WARMUP_STEPS = 50
# Copying is learned first, and fastest on short rows, so the run begins with only those.
SHORT_ROW = 64
SHORT_ROWS_UNTIL = 0.2
# A step sums three micro-batches, each of rows of like length, and each has the same weight: so the
# few tokens of the short answers weigh as much as the many of the long ones.
MICRO_BATCHES = 3
MICRO_BATCH_TOKENS = 768
POOL_ROWS = 2048
# The saved weights are the running mean over about the last 200 steps: they answer like a cooled
# model while the rate is still high.
AVERAGE_DECAY = 0.995
IGNORED = -100
_BAR = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
# torch's fused attention on two CPU cores, hidden size 192, in thousands of tokens a second against
# plain attention's: 8.2 to 11.4 at 16 rows of 64 tokens, but 8.6 to 6.3 at 4 rows of 256.
LONGEST_PLAIN_ROW = 128


@dataclass(frozen=True)
class TrainingRow:
    """Token ids and, of the same length, the labels: IGNORED where the prompt is."""

    ids: list[int]
    labels: list[int]


def main() -> None:
    """Train for the given minutes, writing a usable checkpoint every few minutes."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer, model = _beginning(options.resume)
    averaging = get_ema_multi_avg_fn(AVERAGE_DECAY)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=averaging)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", file=sys.stderr)
    started = saved = time.monotonic()
    for step, loss in enumerate(_train(model, tokenizer, options), start=1):
        average.update_parameters(model)
        if time.monotonic() - saved > 60 * options.save_minutes:
            minutes = (time.monotonic() - started) / 60
            tqdm.write(f"minute {minutes:.1f}, step {step}, loss {loss:.4f}", file=sys.stderr)
            _save(average.module, tokenizer, options.out, options.check)
            saved = time.monotonic()
    tqdm.write(f"finished after step {step}, loss {loss:.4f}", file=sys.stderr)
    _save(average.module, tokenizer, options.out, options.check)


def _beginning(resume: Path | None) -> tuple[Any, Any]:
    """A new tokenizer and model, or those of an earlier run."""
    if resume is None:
        tokenizer = build_tokenizer(VOCAB_SIZE, CONTEXT)
        return tokenizer, LlamaForCausalLM(_config(tokenizer))
    model = LlamaForCausalLM.from_pretrained(resume, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(resume), model


def _config(tokenizer: Any) -> LlamaConfig:
    """1.3 M parameters; six layers, so that they can be split into two or three stages."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _train(model: Any, tokenizer: Any, options: argparse.Namespace) -> Iterator[float]:
    """One optimizer step at a time; yields the smoothed loss after each.

    The learning rate follows the clock and not the step, so that a busy machine still ends with a
    cooled model when the minutes are over.
    """
    optimizers = _optimizers(model)
    short = _micro_batches(tokenizer, options.seed, longest=SHORT_ROW)
    every = _micro_batches(tokenizer, options.seed + 1, longest=CONTEXT)
    short_until = 0.0 if options.resume else SHORT_ROWS_UNTIL
    started, smooth = time.monotonic(), math.nan
    with tqdm(total=1.0, mininterval=5, bar_format=_BAR) as bar:
        for step in count(1):
            progress = (time.monotonic() - started) / (60 * options.minutes)
            if progress >= 1.0:
                return
            batches = islice(short if progress < short_until else every, MICRO_BATCHES)
            loss = _backward(model, list(batches))
            _update(model, optimizers, options.peak * _cooling(step, progress))
            smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
            bar.set_postfix(step=step, loss=f"{smooth:.4f}", refresh=False)
            bar.update(progress - bar.n)
            yield smooth


def _backward(model: Any, batches: Sequence[list[TrainingRow]]) -> float:
    total = 0.0
    for rows in batches:
        ids, labels = _padded(rows)  # [rows, longest]
        model.set_attn_implementation("eager" if ids.shape[1] <= LONGEST_PLAIN_ROW else "sdpa")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss / len(batches)
        loss.backward()
        total += loss.item()
    return total


def _update(model: Any, optimizers: Sequence[torch.optim.Optimizer], cooling: float) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * cooling
        optimizer.step()
        optimizer.zero_grad()


def _padded(rows: Sequence[TrainingRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on the right; causal attention never reads there, so no mask is needed."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORED] * (width - len(row.labels)) for row in rows])
    return ids, labels


def _micro_batches(tokenizer: Any, seed: int, longest: int) -> Iterator[list[TrainingRow]]:
    """Endless groups of rows of like length, about MICRO_BATCH_TOKENS in each, in random order."""
    rng = random.Random(f"micro-batches {seed}")
    rows = (row for row in _rows(tokenizer, seed) if len(row.ids) <= longest)
    while True:
        pool = sorted(islice(rows, POOL_ROWS), key=lambda row: len(row.ids))
        groups: list[list[TrainingRow]] = [[]]
        for row in pool:
            if (len(groups[-1]) + 1) * len(row.ids) > MICRO_BATCH_TOKENS and groups[-1]:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        yield from groups


def _rows(tokenizer: Any, seed: int) -> Iterator[TrainingRow]:
    """Mostly one task; now and then two or three, as the later turns of a conversation."""
    rng = random.Random(f"rows {seed}")
    tasks = training_tasks(seed + 1)  # seed 0 made the tokenizer's corpus
    while True:
        row = TrainingRow([], [])
        for task in islice(tasks, rng.choices((1, 2, 3), (0.8, 0.12, 0.08))[0]):
            prompt = tokenizer(task.prompt).input_ids
            answer = [*tokenizer(task.answer).input_ids, tokenizer.eos_token_id]
            row.ids.extend(prompt + answer)
            row.labels.extend([IGNORED] * len(prompt) + answer)
        yield row


def _optimizers(model: Any) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms' gains."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=MATRIX_LR, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=OTHER_LR, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _cooling(step: int, progress: float) -> float:
    """The share of the peak rate: linear warm-up, then a cosine down to a hundredth."""
    warm = min(1.0, step / WARMUP_STEPS)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def _save(model: Any, tokenizer: Any, out: Path, check: int) -> None:
    """Write the checkpoint in bfloat16 and report the accuracy of that very copy."""
    small = copy.deepcopy(model).to(torch.bfloat16).eval()
    small.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    small.save_pretrained(out)
    tokenizer.save_pretrained(out)
    if check:
        tasks = held_out(check, seed=2)
        texts = answers(small, tokenizer, [task.prompt for task in tasks], tasks)
        tqdm.write(accuracy_table(tasks, texts), file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo/model"))
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--resume", type=Path, help="continue from this checkpoint")
    parser.add_argument("--peak", type=float, default=1.0, help="share of the usual peak rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="1 where the machine is busy")
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument("--check", type=int, default=76, help="held-out tasks asked at each save")
    return parser.parse_args()


if __name__ == "__main__":
    main()
