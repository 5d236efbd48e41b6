"""The effect of virtual stages, in the simulator.

    python -m benchmarks.virtual.virtual_stages [--stages 4]

llama2-13b on L20 GPUs in pipeline stages, with 1, 2 and 4 virtual stages per stage: few long
prompts at once, phases of long prompts and decodes, steady decoding, and ShareGPT-like requests.
Prints Markdown.

A switch costs the bubbles before the first S steps of the new phase, as the mean over the S stages,
as in `engine.stage_time`.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from statistics import fmean
from typing import NamedTuple

from configs.config import EngineConfig
from engine.trace.trace_file import Span
from simulator.argument_types import positive_int
from simulator.command import make_arrivals, summarise
from simulator.hardware.hardware import Hardware, add_hardware_options, hardware_of
from simulator.simulation import Run, simulate
from simulator.workloads.make_workload import make_workload

SIZES = (1, 2, 4)
GPU, MODEL, MAX_MODEL_LEN = "L20", "llama2-13b", 4096
POLICIES = ("td-pipe", "temporal", "hybrid")


class Case(NamedTuple):
    """A workload, and what it shows."""

    title: str
    workload: str


CASES = (
    Case("1 prompt", "fixed:1:4000:1"),
    Case("2 prompts", "fixed:2:4000:1"),
    Case("4 prompts", "fixed:4:4000:1"),
    Case("8 prompts", "fixed:8:4000:1"),
    Case("64 prompts", "fixed:64:4000:1"),
    Case("24 requests, prompts of 3,900, answers of 100", "fixed:24:3900:100"),
    Case("96 requests, prompts of 1,900, answers of 100", "fixed:96:1900:100"),
    Case("512 requests, prompts of 64, answers of 256", "fixed:512:64:256"),
    Case("64 requests, prompts of 64, answers of 256", "fixed:64:64:256"),
    Case("1,000 ShareGPT-like requests", "sharegpt:1000"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.virtual.virtual_stages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stages", type=positive_int, default=4, help="[4]")
    options = parser.parse_args(argv)
    print("| workload | policy | virtual stages | tokens/s | relative | bubble | a switch, ms |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for case, policy in product(CASES, POLICIES):
        for line in lines(case, policy, options.stages):
            print(line, flush=True)
    return 0


def lines(case: Case, policy: str, num_stages: int) -> Iterator[str]:
    """The lines of the table for one workload and policy."""
    base = 0.0
    for size in SIZES:
        run = run_case(case.workload, policy, num_stages, size)
        figures = summarise(run)
        rate, bubble = figures["total_tokens_per_s"], fmean(figures["bubble_ratio"])
        base = base or rate
        switch_s = switch_cost_s(run.spans, num_stages)
        switch = "" if switch_s is None else f"{1000 * switch_s:.1f}"
        yield (
            f"| {case.title} | {policy} | {size} | {rate:,.0f} | {rate / base:.3f} "
            f"| {bubble:.1%} | {switch} |"
        )


def run_case(workload: str, policy: str, num_stages: int, size: int) -> Run:
    """Run a workload with `size` virtual stages per stage."""
    config = EngineConfig.of(
        pipeline_parallel_size=num_stages, virtual_pipeline_size=size, policy=policy
    )
    node = hardware(num_stages).node(num_stages, config.cache.block_size, MAX_MODEL_LEN)
    arrivals = make_arrivals(make_workload(workload), 0.5, 0)
    return simulate(config, replace(node, num_slices=size), arrivals, record=True)


def hardware(num_stages: int) -> Hardware:
    """The GPUs of the experiment."""
    parser = argparse.ArgumentParser()
    add_hardware_options(parser)
    options = parser.parse_args([f"--gpu={GPU}", f"--model={MODEL}", f"--stages={num_stages}"])
    found = hardware_of(options)
    assert isinstance(found, Hardware)
    return found


def switch_cost_s(spans: Sequence[Span], num_stages: int) -> float | None:
    """The mean bubble of a stage at a switch, in seconds; None without switches."""
    phases = {span.step_id: span.phase for span in spans}
    switches = [b for a, b in pairwise(sorted(phases)) if phases[a] != phases[b]]
    first_steps = {step_id + i for step_id in switches for i in range(num_stages)}
    bubble_s = 0.0
    for stage in range(num_stages):
        own = [span for span in spans if span.stage == stage]
        bubble_s += sum(
            after.began_at - before.ended_at
            for before, after in pairwise(own)
            if after.step_id in first_steps
        )
    return bubble_s / num_stages / len(switches) if switches else None


if __name__ == "__main__":
    raise SystemExit(main())
