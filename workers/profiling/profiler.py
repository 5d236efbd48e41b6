"""The profiler measures the cost of steps on this stage under the conditions of service.

It runs at start-up, within a budget of seconds. It measures prefills of growing size in long and in
short rows, decodes with different numbers of rows and with short and long context, and mixes of
both, the most important first. All stages measure at the same time, so that stages that share cores
in service also share them here. The steps are measured in several passes, never one step many times
in a row: a short disturbance of the machine then affects only one measurement of each step, and no
step finds its own KV in the CPU cache.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from configs.profiles import MeasuredStep
from wire.messages import StageCosts
from workers.profiling.cost_fit import fit, predict
from workers.profiling.dummy_run import DummyRun, decode, mixed, prefill

SHORT_CONTEXT, LONG_CONTEXT = 16, 512
MAX_PASSES = 9
# A step that takes more than this fraction of the budget has no warm-up run.
WARM_UP_PART = 0.03
# The cheap steps are measured so often before the expensive ones, which may use up the budget.
NUM_EARLY_PASSES = 3
# A step that took so much longer than its prediction (1: twice as long) is measured again, unless
# it takes more than this fraction of the budget.
DOUBTFUL_ERROR, NUM_AGAIN, AGAIN_PART = 1.0, 3, 0.03
# The median error of costs that are good enough to be kept for the next start.
PLAUSIBLE_ERROR = 0.5

Run = Callable[[DummyRun], float]
"""Runs a dummy run and returns the seconds that it took."""

log = logging.getLogger("tdpipe")


@dataclass(slots=True, frozen=True)
class Measurement:
    """The measured costs; not plausible if they explain the measured steps badly."""

    costs: StageCosts
    is_plausible: bool


NOTHING = Measurement(StageCosts(), is_plausible=False)


def profile(run: Run, dummy_runs: Sequence[DummyRun], budget_s: float) -> Measurement:
    """Measure the costs of as many of the dummy runs as fit into `budget_s`.

    Steps that take much longer than the others suggest are measured again. The result is empty if
    the budget is 0 or the measurement fails: serving works without costs.
    """
    if not budget_s or not dummy_runs:
        return NOTHING
    try:
        times = measure(run, dummy_runs, budget_s)
        errors = _errors(times)
        for dummy_run, error in zip(list(times), errors, strict=True):
            if error > DOUBTFUL_ERROR and times[dummy_run][0] < AGAIN_PART * budget_s:
                times[dummy_run] = [run(dummy_run) for _ in range(NUM_AGAIN)]
        usual_error = median(abs(error) for error in _errors(times))
        return Measurement(fit(_medians(times)), usual_error <= PLAUSIBLE_ERROR)
    except Exception as error:  # serving continues without costs after any error
        log.warning("the stage could not be measured: %s", error)
        return NOTHING


def measure(
    run: Run, dummy_runs: Sequence[DummyRun], budget_s: float
) -> dict[DummyRun, list[float]]:
    """Measure the seconds of the dummy runs that fit the budget, over a few passes.

    At least the first dummy run is measured. Before the first one that takes much of the budget,
    all cheaper ones have been measured several times.
    """
    ends_at = time.monotonic() + budget_s
    times: dict[DummyRun, list[float]] = {}
    num_passes = 1
    for dummy_run in dummy_runs:
        expected_s = _first_s(dummy_run, times, budget_s) if times else 0.0
        if num_passes == 1 and expected_s > WARM_UP_PART * budget_s:
            num_passes = NUM_EARLY_PASSES
            for _ in range(num_passes - 1):
                _measure_again(run, times, ends_at)
        if times and time.monotonic() + expected_s > ends_at:
            continue
        seconds = run(dummy_run)
        if seconds < WARM_UP_PART * budget_s:
            seconds = run(dummy_run)
        times[dummy_run] = [seconds]
    for _ in range(MAX_PASSES - num_passes):
        _measure_again(run, times, ends_at)
    return times


def _measure_again(run: Run, times: dict[DummyRun, list[float]], ends_at: float) -> None:
    for dummy_run, measured in times.items():
        if time.monotonic() + measured[0] <= ends_at:
            measured.append(run(dummy_run))


def _medians(times: dict[DummyRun, list[float]]) -> list[MeasuredStep]:
    return [
        dummy_run.measured(median(seconds), len(seconds)) for dummy_run, seconds in times.items()
    ]


def _errors(times: dict[DummyRun, list[float]]) -> list[float]:
    """For each step, measured / predicted - 1."""
    steps = _medians(times)
    predicted = predict(fit(steps), steps)
    return [
        step.seconds / max(float(p), 1e-9) - 1 for step, p in zip(steps, predicted, strict=True)
    ]


def quick_dummy_runs(
    *,
    max_tokens: int,
    max_model_len: int,
    max_rows: int,
    cache_tokens: int,
    has_stairs: bool,
) -> list[DummyRun]:
    """The dummy runs to measure at start-up, the most important first.

    Steps have at most `max_tokens` tokens, `max_rows` rows and `cache_tokens` tokens of KV; rows
    have at most `max_model_len` tokens, including their context.
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
    # Each of these may take as long as all other runs together.
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
    """The sizes to measure, in tokens: powers of two, and both sides of the stairs of a GPU."""
    chosen = {1 << power for power in range(14)}
    if has_stairs:
        chosen |= {edge + beyond for edge in range(128, 2049, 128) for beyond in (0, 1)}
    return sorted({size for size in chosen if size < max_tokens} | {max_tokens})


def _split(total: int, part: int) -> list[int]:
    return [min(part, total - at) for at in range(0, total, part)]


def _work(dummy_run: DummyRun) -> float:
    """Estimate the cost of a dummy run in fed tokens; 50 tokens of KV count as one token."""
    return (
        dummy_run.num_tokens
        + dummy_run.num_rows
        + (dummy_run.kv_tokens + dummy_run.pairs / 16) / 50
    )


def _first_s(dummy_run: DummyRun, times: dict[DummyRun, list[float]], budget_s: float) -> float:
    """Estimate the seconds of the first measurement of a dummy run, from the largest one so far."""
    largest = max(times, key=_work)
    expected_s = times[largest][0] * max(1.0, _work(dummy_run) / _work(largest))
    return expected_s if expected_s > WARM_UP_PART * budget_s else 2 * expected_s
