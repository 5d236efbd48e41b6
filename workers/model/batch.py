"""The batch: the plan of a step as the tensors and slots that a forward pass takes.

A slot is the position of a token in the KV cache: block number x block size + offset in the block.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wire.messages import Step


@dataclass(slots=True, frozen=True)
class Row:
    """The part of one sequence: its tokens are at `begin:end` of the flat batch."""

    begin: int
    end: int
    read_slots: Tensor  # [all tokens of the sequence], int64


@dataclass(slots=True, frozen=True)
class StepBatch:
    """The tensors of one step on one device."""

    token_ids: Tensor  # [1, tokens], int64
    position_ids: Tensor  # [1, tokens], int64
    write_slots: Tensor  # [tokens], int64
    rows: list[Row]
    sample_at: Tensor  # [sampling rows], int64: the last token of each row that samples
    score_at: Tensor  # [scored tokens], int64: the position before each scored token

    @property
    def num_tokens(self) -> int:
        """The number of tokens fed in this step, over all rows."""
        return self.token_ids.shape[1]


def build(step: Step, block_size: int, device: torch.device) -> StepBatch:
    """Build the batch of a step; `Step` describes the arrays."""
    starts = np.frombuffer(step.start_positions, np.int32).astype(np.int64)
    counts = np.frombuffer(step.num_tokens, np.int32).astype(np.int64)
    blocks = np.frombuffer(step.block_tables, np.int32).astype(np.int64)
    slots = (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)
    totals = starts + counts
    first_slot = _starts(-(-totals // block_size) * block_size)
    begins = _starts(counts)
    reads = [slots[at : at + total] for at, total in zip(first_slot, totals, strict=True)]
    write_slots = np.concatenate([r[s:] for r, s in zip(reads, starts, strict=True)])
    within = np.arange(counts.sum()) - np.repeat(begins, counts)
    samples = np.frombuffer(step.samples, np.uint8).astype(bool)
    return StepBatch(
        token_ids=_tensor(np.frombuffer(step.token_ids, np.int32).astype(np.int64), device)[None],
        position_ids=_tensor(np.repeat(starts, counts) + within, device)[None],
        write_slots=_tensor(write_slots, device),
        rows=[
            Row(int(begin), int(begin + count), read)
            for begin, count, read in zip(begins, counts, _split(reads, device), strict=True)
        ],
        sample_at=_tensor((begins + counts - 1)[samples], device),
        score_at=_tensor(_scored(step, begins, counts), device),
    )


def _scored(step: Step, begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The tokens of the scored rows, without the last token if the next one is still sampled."""
    parts = [
        np.arange(begins[row.row], begins[row.row] + counts[row.row] - (row.next_token_id < 0))
        for row in step.scored
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def num_tokens(step: Step) -> int:
    """The number of tokens fed in the step, without unpacking them."""
    return len(step.token_ids) // 4


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)[:-1]])


def _split(reads: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copy all rows to the device at once, and return views of the copy."""
    flat = _tensor(np.concatenate(reads), device)
    return list(torch.split(flat, [len(read) for read in reads]))


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)
