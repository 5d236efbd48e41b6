"""The dummy run: a step that is run only to be timed, and its terms in the cost model."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from configs.profiles import MeasuredStep
from wire.messages import Phase, Step


@dataclass(frozen=True, slots=True)
class DummyRun:
    """Rows of `counts` new tokens after `starts` others; all rows sample, greedily.

    Their KV starts at `first_block`; rows share blocks where the cache is small.
    """

    kind: Phase
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    first_block: int = 0

    @property
    def num_rows(self) -> int:
        """Rows of the step."""
        return len(self.counts)

    @property
    def num_tokens(self) -> int:
        """Tokens fed, over all rows."""
        return sum(self.counts)

    @property
    def kv_tokens(self) -> int:
        """Tokens of resident KV that are read, over all rows."""
        return sum(self.starts)

    @property
    def pairs(self) -> int:
        """Pairs of a new token with itself or an earlier one, in rows of several new tokens."""
        rows = zip(self.starts, self.counts, strict=True)
        return sum(n * start + n * (n + 1) // 2 for start, n in rows if n > 1)

    @property
    def longest(self) -> int:
        """Tokens of the longest row, with its context."""
        return max(start + n for start, n in zip(self.starts, self.counts, strict=True))

    def measured(self, seconds: float, repeats: int) -> MeasuredStep:
        """The dummy run with its seconds."""
        return MeasuredStep(
            self.kind,
            self.num_rows,
            self.num_tokens,
            self.kv_tokens,
            self.pairs,
            seconds,
            repeats,
        )


def prefill(counts: Sequence[int], context: int = 0) -> DummyRun:
    """Prompts, or chunks of prompts that already have `context` tokens in the cache."""
    return DummyRun("prefill", (context,) * len(counts), tuple(counts))


def decode(num_rows: int, context: int) -> DummyRun:
    """Rows of one token after `context` others."""
    return DummyRun("decode", (context,) * num_rows, (1,) * num_rows)


def mixed(num_rows: int, context: int, chunk: int) -> DummyRun:
    """Decode rows, and a prompt of `chunk` tokens beside them."""
    return DummyRun("mixed", (context,) * num_rows + (0,), (1,) * num_rows + (chunk,))


def block_counts(dummy_run: DummyRun, block_size: int) -> list[int]:
    """Blocks of KV that each row needs."""
    rows = zip(dummy_run.starts, dummy_run.counts, strict=True)
    return [-(-(start + count) // block_size) for start, count in rows]


def make_step(
    dummy_run: DummyRun, block_size: int, num_blocks: int, *, epoch: int = 0, step_id: int = -1
) -> Step:
    """The plan of a dummy run on stages with `num_blocks` blocks of KV cache."""
    tables, next_block = array("i"), dummy_run.first_block
    for length in block_counts(dummy_run, block_size):
        tables.extend(block % num_blocks for block in range(next_block, next_block + length))
        next_block += length
    return Step(
        epoch=epoch,
        step_id=step_id,
        phase=dummy_run.kind,
        sequence_ids=array("q", range(dummy_run.num_rows)).tobytes(),
        start_positions=array("i", dummy_run.starts).tobytes(),
        num_tokens=array("i", dummy_run.counts).tobytes(),
        samples=b"\1" * dummy_run.num_rows,
        token_ids=bytes(4 * dummy_run.num_tokens),
        block_tables=tables.tobytes(),
    )
