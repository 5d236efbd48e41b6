"""The plan of a profile: which steps `tdpipe profile` measures."""

from dataclasses import dataclass, replace

from workers.profiling.dummy_run import DummyRun, block_counts, decode, mixed, prefill
from workers.profiling.profiler import sizes

SHORT_ROW, MIDDLE_ROW = 32, 128
DECODE_CONTEXTS = (16, 256, 1024, 4096)
CHUNK_CONTEXTS = (256, 1024, 4096)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a step: its tokens, its rows, the tokens of a row, and all tokens of KV."""

    max_tokens: int
    max_rows: int
    max_model_len: int
    cache_tokens: int
    block_size: int

    def allow(self, dummy_run: DummyRun) -> bool:
        """Whether the dummy run is within all limits."""
        blocks = sum(block_counts(dummy_run, self.block_size))
        return (
            dummy_run.num_tokens <= self.max_tokens
            and dummy_run.num_rows <= self.max_rows
            and dummy_run.longest <= self.max_model_len
            and blocks * self.block_size <= self.cache_tokens
        )


def full_dummy_runs(limits: Limits, *, has_stairs: bool) -> list[DummyRun]:
    """Make prefills with and without context, decodes with short and long context, and mixes."""
    tokens = sizes(limits.max_tokens, has_stairs=has_stairs)
    coarse = [size for size in tokens if size & (size - 1) == 0 or size == limits.max_tokens]
    rows = [1 << power for power in range(10)]
    dummy_runs = [
        *(prefill(_rows(size, limits.max_model_len)) for size in tokens),
        *(prefill(_rows(n, row)) for n in coarse if n >= 64 for row in (SHORT_ROW, MIDDLE_ROW)),
        *(prefill([n], kv) for n in coarse if n >= 16 for kv in CHUNK_CONTEXTS),
        *(decode(count, kv) for kv in DECODE_CONTEXTS for count in rows),
        *(decode(count, limits.max_model_len - 1) for count in rows),
        *(
            mixed(count, kv, total - count)
            for count in (4, 16, 64)
            for kv in (128, 512)
            for total in (128, 512)
        ),
    ]
    return [dummy_run for dummy_run in dict.fromkeys(dummy_runs) if limits.allow(dummy_run)]


def most_cache_tokens(dummy_runs: list[DummyRun], num_copies: int, block_size: int) -> int:
    """The tokens of KV cache that `num_copies` copies of the largest dummy run need together."""
    return num_copies * block_size * max(sum(block_counts(t, block_size)) for t in dummy_runs)


def copies(dummy_run: DummyRun, count: int, num_stages: int, block_size: int) -> list[DummyRun]:
    """Copy the dummy run `count` times; copies in flight together use different blocks."""
    blocks = sum(block_counts(dummy_run, block_size))
    return [replace(dummy_run, first_block=i % num_stages * blocks) for i in range(count)]


def _rows(total: int, longest: int) -> list[int]:
    return [min(longest, total - at) for at in range(0, total, longest)]
