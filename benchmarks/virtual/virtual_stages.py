"""The effect of virtual stages, in the simulator.

    python -m benchmarks.virtual.virtual_stages [--stages 4]

llama2-13b on L20 GPUs in pipeline stages, with 1, 2 and 4 virtual stages per stage: few long
prompts at once, phases of long prompts and decodes, steady decoding, and ShareGPT-like requests.
Prints Markdown: tokens/s count prompts and answers, and are relative to those with one virtual
stage.

A switch costs the bubbles before the first S steps of the new phase, as the mean over the S stages,
as in `engine.stage_time`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from statistics import fmean

from configs.config import EngineConfig
from engine.trace.trace_file import Span
from simulator.argument_types import positive_int
from simulator.command import make_arrivals, summarise
from simulator.hardware.hardware import Hardware, add_hardware_options, hardware_of
from simulator.simulation import Run, simulate
from simulator.workloads.make_workload import make_workload

SIZES = (1, 2, 4)
GPU, MODEL, MAX_MODEL_LEN = "L20", "llama2-13b", 20_000
POLICIES = ("td-pipe", "temporal")
CASES = {
    "1 prompt of 4,000 tokens": "fixed:1:4000:1",
    "1 prompt of 16,000": "fixed:1:16000:1",
    "2 prompts of 16,000": "fixed:2:16000:1",
    "8 prompts of 4,000": "fixed:8:4000:1",
    "64 prompts of 4,000": "fixed:64:4000:1",
    "24 requests, prompts of 3,900, answers of 100": "fixed:24:3900:100",
    "96 requests, prompts of 1,900, answers of 100": "fixed:96:1900:100",
    "64 requests, prompts of 64, answers of 256": "fixed:64:64:256",
    "512 requests, prompts of 64, answers of 256": "fixed:512:64:256",
    "1,000 ShareGPT-like requests": "sharegpt:1000",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.virtual.virtual_stages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stages", type=positive_int, default=4, help="[4]")
    options = parser.parse_args(argv)
    one, *more = SIZES
    ratios = [f"with {size}" for size in more]
    sizes = ", ".join(map(str, SIZES))
    head = ["workload", "policy", f"tokens/s with {one}", *ratios]
    print(f"| {' | '.join(head)} | bubbles with {sizes} | a switch with {sizes}, ms |")
    print(f"|---|---|{'--:|' * len(SIZES)}--:|--:|")
    for title, policy in product(CASES, POLICIES):
        print(line(title, policy, options.stages), flush=True)
    return 0


def line(title: str, policy: str, num_stages: int) -> str:
    """The line of the table for one workload and policy."""
    rates, bubbles, switches = [], [], []
    for size in SIZES:
        run = run_case(CASES[title], policy, num_stages, size)
        figures = summarise(run)
        rates.append(figures["total_tokens_per_s"])
        bubbles.append(f"{fmean(figures['bubble_ratio']):.1%}")
        switch_s = switch_cost_s(run.spans, num_stages)
        switches.append("–" if switch_s is None else f"{1000 * switch_s:.0f}")
    base, *more = rates
    cells = [title, policy, f"{base:,.0f}", *(f"{rate / base:.3f}" for rate in more)]
    return f"| {' | '.join([*cells, ', '.join(bubbles), ', '.join(switches)])} |"


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
