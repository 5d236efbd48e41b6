"""The profiler: what a step costs on this stage, measured as it is run in service.

A short measurement at start-up, within a budget of seconds: prefills of growing size in long and in
short rows, decodes of several numbers of rows over little and over much resident KV, and both at
once, the most important first. All stages measure at the same time, so those that share cores share
them here too. The steps are measured in several passes, never one step many times in a row: a short
disturbance of the machine affects one measurement of each, and no step finds its own KV in the
processor's cache.
"""

import logging
import time
from collections.abc import Callable, Sequence
from statistics import median

from configs.profiles import MeasuredStep
from wire.messages import StageCosts
from workers.profiling.cost_fit import fit
from workers.profiling.dummy_run import DummyRun, decode, mixed, prefill

SHORT_CONTEXT, LONG_CONTEXT = 16, 512
MAX_PASSES = 9
# A step that takes more than this part of the budget is not run just to warm up.
WARM_UP_PART = 0.03

Run = Callable[[DummyRun], float]
"""Runs a dummy run and returns the seconds that it took."""

log = logging.getLogger("tdpipe")


def profile(run: Run, dummy_runs: Sequence[DummyRun], budget_s: float) -> StageCosts:
    """What the dummy runs' steps cost, as far as `budget_s` reaches.

    Empty where the budget is 0 or something fails: a stage that cannot be measured can be used.
    """
    if not budget_s or not dummy_runs:
        return StageCosts()
    try:
        return fit(measure(run, dummy_runs, budget_s))
    except Exception as error:  # whatever it is, serving continues without costs
        log.warning("the stage could not be measured: %s", error)
        return StageCosts()


def measure(run: Run, dummy_runs: Sequence[DummyRun], budget_s: float) -> list[MeasuredStep]:
    """The dummy runs' median seconds over a few passes, without those beyond the budget.

    At least the first dummy run is measured.
    """
    ends_at = time.monotonic() + budget_s
    times: dict[DummyRun, list[float]] = {}
    for dummy_run in dummy_runs:
        if times and time.monotonic() + _first_s(dummy_run, times, budget_s) > ends_at:
            continue
        seconds = run(dummy_run)
        if seconds < WARM_UP_PART * budget_s:
            seconds = run(dummy_run)
        times[dummy_run] = [seconds]
    for _ in range(MAX_PASSES - 1):
        for dummy_run, measured in times.items():
            if time.monotonic() + measured[0] > ends_at:
                continue
            measured.append(run(dummy_run))
    return [
        dummy_run.measured(median(seconds), len(seconds)) for dummy_run, seconds in times.items()
    ]


def quick_dummy_runs(
    *,
    max_tokens: int,
    max_model_len: int,
    max_rows: int,
    cache_tokens: int,
    has_stairs: bool,
) -> list[DummyRun]:
    """The steps to measure at start-up, the most important first.

    Within steps of `max_tokens` tokens, rows of `max_model_len` with their context, and as many
    rows and as much KV as there can be.
    """
    most = min(max_tokens, cache_tokens)
    contexts = (SHORT_CONTEXT, LONG_CONTEXT)
    first: list[DummyRun] = [
        *(decode(count, context) for count in (1, 8, 32, 128) for context in contexts),
        *(prefill([size]) for size in (4, 16, 64, 256)),
        prefill([32]),
        prefill([8] * 8),
        prefill([32] * 8),
        prefill([64], 448),
        prefill([256], 256),
        mixed(16, 256, 112),
    ]
    # Each of them may take as long as all others together.
    largest = [prefill(_split(most, min(256, max_model_len))), prefill([min(most, max_model_len)])]
    second: list[DummyRun] = [
        *(prefill([size]) for size in sizes(most, has_stairs=has_stairs)),
        *(prefill(_split(size, 128)) for size in (512, 1024)),
        *(decode(1 << power, kv) for power in range(10) for kv in (*contexts, 192, 1536)),
        *(mixed(count, 128, chunk) for count, chunk in ((4, 60), (64, 64), (32, 480))),
        prefill([16] * 4, 240),
        prefill([512], 512),
    ]
    chosen = dict.fromkeys([*sorted(first, key=_work), *largest, *sorted(second, key=_work)])
    return [
        dummy_run
        for dummy_run in chosen
        if dummy_run.num_tokens <= most
        and dummy_run.longest <= max_model_len
        and dummy_run.num_rows <= max_rows
        and dummy_run.kv_tokens + dummy_run.num_tokens <= cache_tokens
    ]


def sizes(max_tokens: int, *, has_stairs: bool) -> list[int]:
    """Numbers of tokens to measure: powers of two, and both sides of a GPU's stairs."""
    chosen = {1 << power for power in range(14)}
    if has_stairs:
        chosen |= {edge + beyond for edge in range(128, 2049, 128) for beyond in (0, 1)}
    return sorted({size for size in chosen if size < max_tokens} | {max_tokens})


def _split(total: int, part: int) -> list[int]:
    return [min(part, total - at) for at in range(0, total, part)]


def _work(dummy_run: DummyRun) -> float:
    """About how long a dummy run takes, in tokens fed: the KV of 50 tokens costs as much as one."""
    return (
        dummy_run.num_tokens
        + dummy_run.num_rows
        + (dummy_run.kv_tokens + dummy_run.pairs / 16) / 50
    )


def _first_s(dummy_run: DummyRun, times: dict[DummyRun, list[float]], budget_s: float) -> float:
    """The expected seconds of a dummy run's first measurement, from the largest measured one."""
    largest = max(times, key=_work)
    expected_s = times[largest][0] * max(1.0, _work(dummy_run) / _work(largest))
    return expected_s if expected_s > WARM_UP_PART * budget_s else 2 * expected_s
