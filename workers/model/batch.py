"""The batch: the plan of a step as the tensors that a forward pass takes.

A slot is the position of a token in the KV cache: block number x block size + offset in the block.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wire.messages import Step


@dataclass(slots=True, frozen=True)
class Rows:
    """Where the tokens of each row are: in the batch, in the sequence and in the KV cache.

    A row is the part of one sequence that a step feeds. All arrays are contiguous.
    """

    begins: np.ndarray  # [rows + 1], int64: row r is `begins[r]:begins[r + 1]` of the batch
    starts: np.ndarray  # [rows], int64: tokens of the sequence that are in the cache already
    table_begins: np.ndarray  # [rows], int64: where the block table of the row begins in `blocks`
    blocks: np.ndarray  # [all blocks of all rows], int32
    block_size: int

    def new_slots(self) -> np.ndarray:
        """The slots of the new tokens [tokens], int64."""
        counts = np.diff(self.begins)
        within = np.arange(self.begins[-1]) - np.repeat(self.begins[:-1], counts)
        positions = np.repeat(self.starts, counts) + within
        tables = np.repeat(self.table_begins, counts)
        blocks = self.blocks[tables + positions // self.block_size].astype(np.int64)
        slots: np.ndarray = blocks * self.block_size + positions % self.block_size
        return slots


@dataclass(slots=True, frozen=True)
class StepBatch:
    """The tensors of one step on one device, and its rows on the host."""

    token_ids: Tensor  # [1, tokens], int64
    position_ids: Tensor  # [1, tokens], int64
    sample_at: Tensor  # [sampling rows], int64: the last token of each row that samples
    score_at: Tensor  # [scored tokens], int64: the position before each scored token
    rows: Rows

    @property
    def num_tokens(self) -> int:
        """The number of tokens fed in this step, over all rows."""
        return self.token_ids.shape[1]


def build(step: Step, block_size: int, device: torch.device) -> StepBatch:
    """Build the batch of a step; `Step` describes the arrays."""
    starts = np.frombuffer(step.start_positions, np.int32).astype(np.int64)
    counts = np.frombuffer(step.num_tokens, np.int32).astype(np.int64)
    begins = _sums(counts)
    within = np.arange(begins[-1]) - np.repeat(begins[:-1], counts)
    samples = np.frombuffer(step.samples, np.uint8).astype(bool)
    return StepBatch(
        token_ids=_tensor(np.frombuffer(step.token_ids, np.int32).astype(np.int64), device)[None],
        position_ids=_tensor(np.repeat(starts, counts) + within, device)[None],
        sample_at=_tensor((begins[1:] - 1)[samples], device),
        score_at=_tensor(_scored(step, begins), device),
        rows=Rows(
            begins,
            starts,
            _sums(-(-(starts + counts) // block_size))[:-1],
            np.frombuffer(step.block_tables, np.int32),
            block_size,
        ),
    )


def _scored(step: Step, begins: np.ndarray) -> np.ndarray:
    """The tokens of the scored rows, without the last token if the next one is still sampled."""
    parts = [
        np.arange(begins[row.row], begins[row.row + 1] - (row.next_token_id < 0))
        for row in step.scored
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def num_tokens(step: Step) -> int:
    """The number of tokens fed in the step, without unpacking them."""
    return len(step.token_ids) // 4


def _sums(lengths: np.ndarray) -> np.ndarray:
    """The sums of the first 0, 1, ... and of all lengths."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)
