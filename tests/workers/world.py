"""A small world for the stages: rows by hand, scattered blocks, and the plan that names them."""

import random
from array import array
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wire.messages import Step
from workers.device.upload import upload_to
from workers.model.attention.backends import Backend
from workers.model.attention.plain import PlainBackend
from workers.model.batch import Rows, StepBatch, build

CPU = torch.device("cpu")


@dataclass(slots=True)
class History:
    """One sequence: all its tokens, its blocks, and how many tokens have been fed."""

    token_ids: list[int]
    block_table: list[int]
    fed: int = 0

    def slot(self, position: int, block_size: int) -> int:
        """The token's slot in the cache."""
        return self.block_table[position // block_size] * block_size + position % block_size


@dataclass(slots=True)
class Ground:
    """Sequences with blocks that are scattered over a cache of `num_blocks`."""

    block_size: int = 4
    num_blocks: int = 64
    seed: int = 1
    _free: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free = list(range(self.num_blocks))
        random.Random(self.seed).shuffle(self._free)

    def sequence(self, token_ids: list[int], spare: int = 0) -> History:
        """A sequence with blocks for its tokens and `spare` more."""
        count = -(-(len(token_ids) + spare) // self.block_size)
        return History(list(token_ids), [self._free.pop() for _ in range(count)])

    def step(self, shares: list[tuple[History, int]], step_id: int = 0) -> Step:
        """The plan that feeds `shares`: (sequence, tokens); it counts them as fed."""
        starts, counts, tokens, tables = (array("i") for _ in range(4))
        samples = bytearray()
        for sequence, count in shares:
            end = sequence.fed + count
            starts.append(sequence.fed)
            counts.append(count)
            tokens.extend(sequence.token_ids[sequence.fed : end])
            tables.extend(sequence.block_table[: -(-end // self.block_size)])
            samples.append(end == len(sequence.token_ids))
            sequence.fed = end
        return Step(
            1,
            step_id,
            "prefill",
            array("q", range(len(shares))).tobytes(),
            starts.tobytes(),
            counts.tobytes(),
            bytes(samples),
            tokens.tobytes(),
            tables.tobytes(),
        )

    def batch(self, shares: list[tuple[History, int]], backend: Backend | None = None) -> StepBatch:
        """The same as tensors, for this attention backend or for `plain`."""
        arrays_of = (backend or PlainBackend()).arrays
        return build(self.step(shares), self.block_size, upload_to(CPU), arrays_of)


def ints(tensor: Tensor) -> list[int]:
    """The numbers of a tensor."""
    return [int(number) for number in tensor.reshape(-1).tolist()]


def all_slots(rows: Rows) -> list[list[int]]:
    """For each row, the slots of all tokens of its sequence, one after the other."""
    return [
        [
            int(rows.blocks[table + position // rows.block_size]) * rows.block_size
            + position % rows.block_size
            for position in range(start + count)
        ]
        for table, start, count in zip(
            rows.table_begins.tolist(),
            rows.starts.tolist(),
            np.diff(rows.begins).tolist(),
            strict=True,
        )
    ]
