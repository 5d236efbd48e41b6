"""The profiler: what a step costs on this stage, measured as it will be run.

A quick look at the start, within a budget of seconds: prefills of growing size, then decodes over
little and over much resident KV. All stages measure at the same time, so those that share cores
share them here too. What it writes into the cache is never read: a real row writes its own slots
before anybody reads them.
"""

import logging
import time
from array import array
from collections.abc import Callable
from itertools import accumulate
from statistics import median

import torch

from engine.messages import Phase, StageCosts, Step

# Prompts in a measured prefill are not longer: attention within one is another matter.
ROW_TOKENS = 256
DECODE_ROWS = 16
SHORT_CONTEXT, LONG_CONTEXT = 16, 512
MAX_REPEATS = 3
# Parts of the budget: one size is repeated no longer than, and prefills may take in all.
REPEAT_PART, PREFILL_PART = 0.05, 0.8

log = logging.getLogger("tdpipe")


def profile(
    run: Callable[[Step], None],
    *,
    device: torch.device,
    block_size: int,
    num_blocks: int,
    max_tokens: int,
    budget_s: float,
) -> StageCosts:
    """Seconds of `run` over steps of up to `max_tokens` tokens, as far as `budget_s` reaches.

    Empty where the budget is 0 or something fails: a stage that cannot be measured can be used.
    """
    if not budget_s:
        return StageCosts()
    ends_at = time.monotonic() + PREFILL_PART * budget_s
    most = min(max_tokens, num_blocks * block_size)

    def timed(step: Step) -> float:
        return _time(run, step, device, REPEAT_PART * budget_s)

    try:
        measured = _prefills(timed, device, block_size, most, ends_at)
        kv_s = _kv_seconds(timed, block_size, num_blocks)
    except Exception as error:  # whatever it is, serving goes on without
        log.warning("the stage could not be measured: %s", error)
        return StageCosts()
    # More tokens never cost less; what says so is noise.
    seconds = tuple(accumulate(measured.values(), max))
    return StageCosts(tuple(measured), seconds, kv_s)


def sizes(max_tokens: int, *, has_stairs: bool) -> list[int]:
    """Numbers of tokens to measure: powers of two, and both sides of a GPU's stairs."""
    chosen = {1 << power for power in range(14)}
    if has_stairs:
        chosen |= {edge + beyond for edge in range(128, 2049, 128) for beyond in (0, 1)}
    return sorted({size for size in chosen if size < max_tokens} | {max_tokens})


def prefill_step(num_tokens: int, block_size: int) -> Step:
    """Prompts of `num_tokens` tokens together, from the cache's first block on."""
    rows = [min(ROW_TOKENS, num_tokens - at) for at in range(0, num_tokens, ROW_TOKENS)]
    return _step("prefill", rows, [0] * len(rows), block_size)


def decode_step(num_rows: int, context: int, block_size: int, num_blocks: int) -> Step:
    """Rows of one token after `context` others; they share blocks where the cache is small."""
    return _step("decode", [1] * num_rows, [context] * num_rows, block_size, num_blocks)


def _prefills(
    timed: Callable[[Step], float],
    device: torch.device,
    block_size: int,
    most: int,
    ends_at: float,
) -> dict[int, float]:
    measured: dict[int, float] = {}
    for size in sizes(most, has_stairs=device.type == "cuda"):
        last = max(measured, default=0)
        expected_s = measured[last] * size / last if last else 0.0
        if measured and time.monotonic() + expected_s > ends_at:
            break
        measured[size] = timed(prefill_step(size, block_size))
    return measured


def _kv_seconds(timed: Callable[[Step], float], block_size: int, num_blocks: int) -> float:
    """Seconds for each token of resident KV that a decode reads."""
    short, long = (
        timed(decode_step(DECODE_ROWS, context, block_size, num_blocks))
        for context in (SHORT_CONTEXT, LONG_CONTEXT)
    )
    return max(0.0, long - short) / (DECODE_ROWS * (LONG_CONTEXT - SHORT_CONTEXT))


def _time(run: Callable[[Step], None], step: Step, device: torch.device, limit_s: float) -> float:
    """The median of a few runs within `limit_s`, at least of one, after one to warm up."""
    times: list[float] = []
    while len(times) <= MAX_REPEATS and (len(times) < 2 or sum(times) < limit_s):
        _wait(device)
        began_at = time.perf_counter()
        run(step)
        _wait(device)
        times.append(time.perf_counter() - began_at)
    return median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _step(
    phase: Phase, counts: list[int], starts: list[int], block_size: int, num_blocks: int = 0
) -> Step:
    tables, next_block = array("i"), 0
    for count, start in zip(counts, starts, strict=True):
        length = -(-(start + count) // block_size)
        blocks = range(next_block, next_block + length)
        tables.extend(block % num_blocks if num_blocks else block for block in blocks)
        next_block += length
    return Step(
        epoch=0,
        step_id=-1,
        phase=phase,
        sequence_ids=array("q", range(len(counts))).tobytes(),
        start_positions=array("i", starts).tobytes(),
        num_tokens=array("i", counts).tobytes(),
        samples=b"\1" * len(counts),
        token_ids=bytes(4 * sum(counts)),
        block_tables=tables.tobytes(),
    )
