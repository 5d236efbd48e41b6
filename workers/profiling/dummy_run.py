"""The dummy run: a step that runs only to be timed, and its terms in the cost model."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from configs.profiles import MeasuredStep
from wire.messages import Phase, Step


@dataclass(frozen=True, slots=True)
class DummyRun:
    """A step with rows of `counts` new tokens after `starts` earlier tokens.

    All rows sample greedily. The KV of the rows starts at `first_block`; rows share blocks if the
    cache is small.
    """

    kind: Phase
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    first_block: int = 0

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return len(self.counts)

    @property
    def num_tokens(self) -> int:
        """The number of tokens fed, over all rows."""
        return sum(self.counts)

    @property
    def kv_tokens(self) -> int:
        """The number of resident KV tokens read, over all rows."""
        return sum(self.starts)

    @property
    def pairs(self) -> int:
        """The number of pairs of a new token with itself or an earlier one, outside decode rows."""
        rows = zip(self.starts, self.counts, strict=True)
        return sum(n * start + n * (n + 1) // 2 for start, n in rows if n > 1)

    @property
    def longest(self) -> int:
        """The number of tokens of the longest row, including its context."""
        return max(start + n for start, n in zip(self.starts, self.counts, strict=True))

    def measured(self, seconds: float, repeats: int) -> MeasuredStep:
        """The dummy run with its measured seconds."""
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
    """Make a run of prompts, or of chunks of prompts with `context` tokens in the cache."""
    return DummyRun("prefill", (context,) * len(counts), tuple(counts))


def decode(num_rows: int, context: int) -> DummyRun:
    """Make a run of rows with one new token after `context` tokens."""
    return DummyRun("decode", (context,) * num_rows, (1,) * num_rows)


def mixed(num_rows: int, context: int, chunk: int) -> DummyRun:
    """Make a run of decode rows and one prompt of `chunk` tokens."""
    return DummyRun("mixed", (context,) * num_rows + (0,), (1,) * num_rows + (chunk,))


def block_counts(dummy_run: DummyRun, block_size: int) -> list[int]:
    """The number of KV blocks that each row needs."""
    rows = zip(dummy_run.starts, dummy_run.counts, strict=True)
    return [-(-(start + count) // block_size) for start, count in rows]


def make_step(
    dummy_run: DummyRun, block_size: int, num_blocks: int, *, epoch: int = 0, step_id: int = -1
) -> Step:
    """Make the plan of a dummy run for stages with `num_blocks` blocks of KV cache."""
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
