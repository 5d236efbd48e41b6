"""The error of the cost model against real steps: `make cost-model-error`.

The real stages measure their costs as at any start (or `--profile FILE.steps.csv` gives the costs).
They then run random steps that they have not measured, as an engine would send them: several turns
of prefill micro-batches, then of decode and mixed ones, S in flight. The command prints the error
of the predicted seconds of each kind of step on each stage, as Markdown: first with the costs
measured at the start, then as in operation, where the model follows the reports of the stages. Each
step is predicted before the model sees it; the first steps, from which the model learns, are not
counted.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from math import exp, log
from pathlib import Path

import numpy as np

from benchmarks.real_policies import make_random_llama
from configs import loader
from configs.profiles import MeasuredStep, ProfileError, head_of_steps, line_of_step
from daemon.observability import logs
from engine.costs.correction import StageCorrection
from engine.costs.cost_model import CostModel, StepSize
from wire.messages import StageCosts
from workers.profiling.cost_fit import Array, predict
from workers.profiling.driver import Driver, DriverError
from workers.profiling.dummy_run import DummyRun, block_counts
from workers.profiling.plan import Limits

KINDS = ("prefill", "decode", "mixed")
RANDOM_LLAMA = "random-llama"
# Steps of one kind that follow each other: a phase is several pipeline turns long.
PHASE_STEPS = 8
MOST_ROWS, MOST_PROMPT = 256, 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 2 if the costs cannot be measured."""
    options, rest = _parser().parse_known_args(argv)
    with tempfile.TemporaryDirectory(prefix="tdpipe-costs-") as temporary:
        if rest and rest[0] == RANDOM_LLAMA:
            rest[0] = str(make_random_llama(Path(temporary) / "llama"))
        try:
            # A fresh measurement each time, unless the caller has a folder for it.
            config = loader.load(rest)
            if "data_dir" not in config.runtime.model_fields_set:
                config = config.replaced(data_dir=Path(temporary) / "data")
            logs.set_up("costs", config.logs)
            with Driver(config) as driver:
                limits = Limits(
                    config.scheduler.max_num_batched_tokens,
                    options.max_rows,
                    min(driver.max_model_len, options.max_context),
                    driver.cache_tokens,
                    config.cache.block_size,
                )
                measured = run(driver, limits, options.learn + options.steps, options.seed)
                costs = [ready.costs for ready in driver.ready]
        except (loader.ConfigError, ProfileError, DriverError, OSError, ValueError) as error:
            print(f"tdpipe: error: {error}", file=sys.stderr)
            return 2
    if options.dump is not None:
        _dump(options.dump, costs, measured)
    print(table(costs, measured, options.learn))
    return 0


def random_dummy_runs(limits: Limits, seed: int) -> Iterator[DummyRun]:
    """Yield endless steps in phases; sizes are log-uniform, and each row has its own lengths."""
    rng = random.Random(seed)
    while True:
        kind = rng.choice(KINDS)
        for _ in range(PHASE_STEPS):
            dummy_run = _random_dummy_run(kind, rng, limits)
            while not limits.allow(dummy_run):
                dummy_run = _random_dummy_run(kind, rng, limits)
            yield dummy_run


def run(driver: Driver, limits: Limits, num_steps: int, seed: int) -> list[list[MeasuredStep]]:
    """Return the times of `num_steps` random steps on each stage, after steps to warm up."""
    stream = random_dummy_runs(limits, seed)
    dummy_runs = [
        dummy_run for dummy_run, _ in zip(stream, range(num_steps + PHASE_STEPS), strict=False)
    ]
    size = limits.block_size
    blocks = max(sum(block_counts(dummy_run, size)) for dummy_run in dummy_runs)
    driver.fill(min(blocks * driver.num_stages * size, limits.cache_tokens))
    placed = (
        replace(dummy_run, first_block=i % driver.num_stages * blocks)
        for i, dummy_run in zip(count(), dummy_runs, strict=False)
    )
    timed = list(driver.run(placed, driver.num_stages))[PHASE_STEPS:]
    return [
        [t.dummy_run.measured(t.seconds(stage), 1) for t in timed]
        for stage in range(driver.num_stages)
    ]


def in_service(costs: StageCosts, steps: Sequence[MeasuredStep]) -> Array:
    """Return the seconds that a model predicts for each step after all steps before it. [steps]"""
    correction, predicted = StageCorrection(CostModel.of(costs)), []
    for number, step in enumerate(steps):
        size = StepSize(step.tokens, step.rows, step.kv_tokens, step.pairs)
        predicted.append(correction.model.step_s(size))
        correction.observe(size, step.seconds)
        if number % PHASE_STEPS == 0:
            correction.update()
    return np.array(predicted)


def table(
    costs: Sequence[StageCosts], measured: Sequence[Sequence[MeasuredStep]], num_learnt: int = 0
) -> str:
    """Median and 95th percentile of |predicted - measured| / measured, and the median's sign."""
    lines = [
        "| stage | steps | number | median, ms | at the start: median | p95 | signed "
        "| in service: median | p95 | signed |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for stage, all_steps in enumerate(measured):
        if not costs[stage].num_tokens:
            continue
        steps = all_steps[num_learnt:]
        seconds = np.array([step.seconds for step in steps])
        errors = [
            predict(costs[stage], steps) / seconds - 1,
            in_service(costs[stage], all_steps)[num_learnt:] / seconds - 1,
        ]
        for kind in (*KINDS, "all"):
            chosen = np.array([kind in ("all", step.kind) for step in steps], dtype=bool)
            if chosen.any():
                cells = " | ".join(_spread(signed[chosen]) for signed in errors)
                middle_ms = 1000 * np.median(seconds[chosen])
                lines.append(f"| {stage} | {kind} | {chosen.sum()} | {middle_ms:.1f} | {cells} |")
    return "\n".join(lines)


def _spread(signed: Array) -> str:
    middle, high = np.percentile(np.abs(signed), [50, 95])
    return f"{middle:.1%} | {high:.1%} | {np.median(signed):+.1%}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.costs.cost_model_error",
        usage=f"%(prog)s [MODEL | {RANDOM_LLAMA}] [-pp S] [any setting of `tdpipe serve`]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--steps", type=int, default=240, help="random steps [240]")
    add("--learn", type=int, default=240, help="steps before them, to learn from [240]")
    add("--seed", type=int, default=0, help="[0]")
    add("--max-rows", type=int, default=MOST_ROWS, help=f"rows of a step [{MOST_ROWS}]")
    add("--max-context", type=int, default=2048, help="tokens of a row [2048]")
    add("--dump", type=Path, help="write the steps and the costs to this folder")
    return parser


def _random_dummy_run(kind: str, rng: random.Random, limits: Limits) -> DummyRun:
    if kind == "decode":
        starts = _contexts(rng, limits, _log_uniform(rng, 1, min(MOST_ROWS, limits.max_rows)))
        return DummyRun("decode", starts, (1,) * len(starts))
    prompts: list[int] = []
    num_left = _log_uniform(rng, 16, limits.max_tokens)
    while num_left > 0:
        prompts.append(min(num_left, _log_uniform(rng, 8, MOST_PROMPT)))
        num_left -= prompts[-1]
    # The first row may be the rest of a prompt that is partly in the cache.
    first = _log_uniform(rng, 16, MOST_PROMPT) if rng.random() < 0.3 else 0
    begins = (first, *[0] * (len(prompts) - 1))
    if kind == "prefill":
        return DummyRun("prefill", begins, tuple(prompts))
    starts = _contexts(rng, limits, _log_uniform(rng, 1, min(MOST_ROWS, limits.max_rows)))
    return DummyRun("mixed", (*starts, *begins), (*(1,) * len(starts), *prompts))


def _contexts(rng: random.Random, limits: Limits, num_rows: int) -> tuple[int, ...]:
    """Rows of a batch have contexts of similar, but not equal length."""
    typical = _log_uniform(rng, 16, limits.max_model_len // 2)
    return tuple(max(1, round(typical * rng.uniform(0.5, 1.9))) for _ in range(num_rows))


def _log_uniform(rng: random.Random, least: int, most: int) -> int:
    return round(exp(rng.uniform(log(least), log(max(least, most)))))


def _dump(
    path: Path, costs: Sequence[StageCosts], measured: Sequence[Sequence[MeasuredStep]]
) -> None:
    notes = {f"costs of stage {i}": repr(cost) for i, cost in enumerate(costs)}
    lines = [line_of_step(i, step) for i, steps in enumerate(measured) for step in steps]
    path.write_text(head_of_steps({"stages": str(len(costs))} | notes) + "".join(lines))


if __name__ == "__main__":
    raise SystemExit(main())
