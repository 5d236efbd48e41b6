"""Fine-tuning of encoder and head, with early stopping by the loss on the validation part."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from predictor.classes import Floats, Ints
from predictor.model import LengthModel, Reader, probabilities

# Prompts are sorted by length within a pool of this many batches; then batches are shuffled.
_POOL_BATCHES = 50
_WARMUP = 0.1
_MAX_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Hyperparameters; the defaults are the paper's (section 4.1), except for patience and seed."""

    epochs: int = 4
    batch_size: int = 32
    lr: float = 5e-5
    head_lr: float = 1e-3
    patience: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Prompts as token ids, and the class of each one's length."""

    ids: Sequence[Sequence[int]]
    classes: Ints

    def __len__(self) -> int:
        return len(self.ids)


def fit(
    model: LengthModel, reader: Reader, training: Rows, validation: Rows, settings: Settings
) -> list[float]:
    """Train, and return the validation loss after each epoch; keeps the weights of the best epoch.

    Stops early when the loss has not decreased for `patience` epochs. The same seed gives the same
    weights on the same machine with the same number of threads.
    """
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    optimizer = _optimizer(model, settings)
    steps_per_epoch = math.ceil(len(training) / settings.batch_size)
    schedule = _schedule(optimizer, steps_per_epoch * settings.epochs)
    losses: list[float] = []
    best: dict[str, Tensor] = {}
    with tqdm(total=steps_per_epoch * settings.epochs, unit="batch", disable=None) as bar:
        for _ in range(settings.epochs):
            for batch in batches(training, settings.batch_size, rng):
                loss = _step(model, reader, training, batch, optimizer)
                schedule.step()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update()
            losses.append(mean_loss(model, reader, validation, settings.batch_size))
            tqdm.write(f"epoch {len(losses)}: validation loss {losses[-1]:.4f}")
            if losses[-1] == min(losses):
                best = copy.deepcopy(model.state_dict())
            elif len(losses) - 1 - int(np.argmin(losses)) >= settings.patience:
                break
    # If the loss is always NaN, it is never equal to its minimum.
    if not best:
        raise FloatingPointError("the loss is NaN; a lower --lr may help")
    model.load_state_dict(best)
    return losses


def batches(rows: Rows, size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Batches of row indices, in random order; the prompts of a batch have similar lengths."""
    order = rng.permutation(len(rows))
    cut: list[list[int]] = []
    for start in range(0, len(order), size * _POOL_BATCHES):
        pool = order[start : start + size * _POOL_BATCHES].tolist()
        pool.sort(key=lambda i: len(rows.ids[i]))
        cut.extend(pool[at : at + size] for at in range(0, len(pool), size))
    for i in rng.permutation(len(cut)):
        yield cut[i]


@torch.inference_mode()
def class_probabilities(
    model: LengthModel, reader: Reader, ids: Sequence[Sequence[int]], size: int
) -> Floats:
    """The probabilities of the classes for each row, [rows, K]."""
    logits = _all_logits(model, reader, ids, size)
    return probabilities(logits)


def mean_loss(model: LengthModel, reader: Reader, rows: Rows, size: int) -> float:
    """The mean loss over the rows, without training."""
    with torch.inference_mode():
        return _loss(_all_logits(model, reader, rows.ids, size), rows.classes).item()


def _all_logits(
    model: LengthModel, reader: Reader, ids: Sequence[Sequence[int]], size: int
) -> Tensor:
    model.eval()
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    parts = [
        _logits(model, reader, [ids[i] for i in order[start : start + size]]).cpu()
        for start in range(0, len(order), size)
    ]
    found = torch.cat(parts)
    inverse = torch.empty(len(order), dtype=torch.long)
    inverse[torch.tensor(order)] = torch.arange(len(order))
    return found[inverse]


def _step(
    model: LengthModel,
    reader: Reader,
    rows: Rows,
    batch: Sequence[int],
    optimizer: torch.optim.Optimizer,
) -> float:
    model.train()
    loss = _loss(_logits(model, reader, [rows.ids[i] for i in batch]), rows.classes[list(batch)])
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), _MAX_NORM)
    optimizer.step()
    return loss.item()


def _logits(model: LengthModel, reader: Reader, ids: Sequence[Sequence[int]]) -> Tensor:
    device = next(model.parameters()).device
    tokens, mask = reader.batch(ids)
    return model(tokens.to(device), mask.to(device))  # type: ignore[no-any-return]


def _loss(logits: Tensor, classes: Ints) -> Tensor:
    """Binary cross-entropy of "longer than class k?", summed over k."""
    wanted = torch.as_tensor(classes, device=logits.device)[:, None]
    is_above = (wanted > torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)
    each = nn.functional.binary_cross_entropy_with_logits(logits, is_above, reduction="none")
    return each.sum(dim=1).mean()


def _optimizer(model: LengthModel, settings: Settings) -> torch.optim.Optimizer:
    groups = [
        {"params": list(model.encoder.parameters()), "lr": settings.lr},
        {"params": list(model.head.parameters()), "lr": settings.head_lr},
    ]
    return torch.optim.AdamW(groups, weight_decay=0.01)


def _schedule(
    optimizer: torch.optim.Optimizer, num_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up, then linear to zero."""
    warmup = max(1, round(_WARMUP * num_steps))

    def share(step: int) -> float:
        return min((step + 1) / warmup, max(0.0, (num_steps - step) / max(1, num_steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)
