"""The batch: the plan of a step as the tensors that a forward pass takes.

A slot is the position of a token in the KV cache: block number x block size + offset in the block.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from wire.messages import Step
from workers.device.upload import Arrays, Upload


@dataclass(slots=True, frozen=True)
class Rows:
    """Where the tokens of each row are: in the batch, in the sequence and in the KV cache.

    A row is the part of one sequence that a step feeds. All arrays are contiguous. The last
    `num_padding` rows belong to no sequence: their token goes to no slot.
    """

    begins: np.ndarray  # [rows + 1], int64: row r is `begins[r]:begins[r + 1]` of the batch
    starts: np.ndarray  # [rows], int64: tokens of the sequence that are in the cache already
    table_begins: np.ndarray  # [rows], int64: where the block table of the row begins in `blocks`
    blocks: np.ndarray  # [all blocks of all rows], int32
    block_size: int
    num_padding: int = 0

    def new_slots(self) -> np.ndarray:
        """The slots of the new tokens [tokens], int64; -1 for the token of a padding row."""
        counts = np.diff(self.begins)
        within = np.arange(self.begins[-1]) - np.repeat(self.begins[:-1], counts)
        positions = np.repeat(self.starts, counts) + within
        tables = np.repeat(self.table_begins, counts)
        blocks = self.blocks[tables + positions // self.block_size].astype(np.int64)
        slots: np.ndarray = blocks * self.block_size + positions % self.block_size
        if self.num_padding:
            slots[-self.num_padding :] = -1
        return slots


ArraysOf = Callable[[Rows], Arrays]
"""Makes the further integers of a step that its attention needs on the device."""


@dataclass(slots=True, frozen=True)
class HostBatch:
    """The numbers of one step on the host."""

    token_ids: np.ndarray  # [tokens], int64
    position_ids: np.ndarray  # [tokens], int64
    rope_lens: np.ndarray  # [tokens], int64, see `Step`
    output_at: np.ndarray  # [sampling rows + scored tokens], int64, see `StepBatch`
    num_sampling: int
    rows: Rows


@dataclass(slots=True, frozen=True)
class StepBatch:
    """The tensors of one step on one device, and its rows on the host."""

    token_ids: Tensor  # [1, tokens], int64
    position_ids: Tensor  # [1, tokens], int64
    rope_lens: Tensor  # [1, tokens], int64, see `Step`
    # The last token of each row that samples, then the token before each scored token.
    output_at: Tensor  # [sampling rows + scored tokens], int64
    num_sampling: int
    rows: Rows
    arrays: dict[str, Tensor]  # what the attention backend needs on the device

    @property
    def num_tokens(self) -> int:
        """The number of tokens fed in this step, over all rows."""
        return self.token_ids.shape[1]


def build(
    step: Step, block_size: int, upload: Upload, arrays_of: ArraysOf = lambda _: {}
) -> StepBatch:
    """Build the batch of a step; `Step` describes the arrays."""
    return send(unpack(step, block_size), upload, arrays_of)


def unpack(step: Step, block_size: int) -> HostBatch:
    """The numbers of a step; `Step` describes its arrays."""
    starts = np.frombuffer(step.start_positions, np.int32).astype(np.int64)
    counts = np.frombuffer(step.num_tokens, np.int32).astype(np.int64)
    begins = _sums(counts)
    within = np.arange(begins[-1]) - np.repeat(begins[:-1], counts)
    position_ids = np.repeat(starts, counts) + within
    sample_at = (begins[1:] - 1)[np.frombuffer(step.samples, np.uint8).astype(bool)]
    return HostBatch(
        token_ids=np.frombuffer(step.token_ids, np.int32).astype(np.int64),
        position_ids=position_ids,
        rope_lens=_rope_lens(step, counts, position_ids),
        output_at=np.concatenate([sample_at, *_scored(step, begins)]) if step.scored else sample_at,
        num_sampling=len(sample_at),
        rows=Rows(
            begins,
            starts,
            _sums(-(-(starts + counts) // block_size))[:-1],
            np.frombuffer(step.block_tables, np.int32),
            block_size,
        ),
    )


def send(
    host: HostBatch, upload: Upload, arrays_of: ArraysOf, into: Tensor | None = None
) -> StepBatch:
    """Bring the numbers of a step to the device, in one copy; into `into` where it is given."""
    arrays = upload(arrays_of_step(host, arrays_of), into)
    return StepBatch(
        arrays.pop("token_ids")[None],
        arrays.pop("position_ids")[None],
        arrays.pop("rope_lens")[None],
        arrays.pop("output_at"),
        host.num_sampling,
        host.rows,
        arrays,
    )


def arrays_of_step(host: HostBatch, arrays_of: ArraysOf) -> Arrays:
    """All arrays of a step that go to the device."""
    return {
        "token_ids": host.token_ids,
        "position_ids": host.position_ids,
        "rope_lens": host.rope_lens,
        "output_at": host.output_at,
        **arrays_of(host.rows),
    }


def _rope_lens(step: Step, counts: np.ndarray, position_ids: np.ndarray) -> np.ndarray:
    """The RoPE length of each token."""
    if not step.rope_lens:
        return position_ids + 1
    of_rows = np.frombuffer(step.rope_lens, np.int32).astype(np.int64)
    lens: np.ndarray = np.maximum(np.repeat(of_rows, counts), position_ids + 1)
    return lens


def _scored(step: Step, begins: np.ndarray) -> list[np.ndarray]:
    """The tokens of each scored row, without the last token if the next one is still sampled."""
    return [
        np.arange(begins[row.row], begins[row.row + 1] - (row.next_token_id < 0))
        for row in step.scored
    ]


def num_tokens(step: Step) -> int:
    """The number of tokens fed in the step, without unpacking them."""
    return len(step.token_ids) // 4


def _sums(lengths: np.ndarray) -> np.ndarray:
    """The sums of the first 0, 1, ... and of all lengths."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
