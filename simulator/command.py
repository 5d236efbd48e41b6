"""`tdpipe simulate`: runs the production scheduler in virtual time.

Each stage takes an equal part of the times in a profile (seconds over tokens of the whole model on
one GPU), plus the time to read the KV of a step. The command accepts all settings of `tdpipe serve`
that affect scheduling, such as `--policy`.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import exp
from pathlib import Path
from time import perf_counter
from typing import Any

from configs.loader import ConfigError, load
from configs.output_files import OutputFileError, check_outputs
from engine.scheduler import ImpossibleSettingsError
from engine.trace.trace_file import TRACE_MARK, TraceWriter
from simulator.argument_types import not_negative
from simulator.arrival import Arrival
from simulator.bound import Bound, bound_of
from simulator.hardware.hardware import (
    ERRORS,
    HardwareError,
    add_hardware_options,
    hardware_of,
    num_stages_of,
)
from simulator.macro.command import (
    add_macro_options,
    macro_table,
    router_settings,
    simulate_instances,
)
from simulator.prefixes import cached_tokens
from simulator.simulation import Run, SimulationError, simulate
from simulator.spread import spread
from simulator.timeline_plot import TIMELINE_MARK, draw, picture
from simulator.workloads.make_workload import KINDS, add_workload_options, workload_of
from simulator.workloads.request import Request, WorkloadError

# Upper bound of --prediction-sigma: a prediction e^10 times too long is as bad as any.
MOST_SIGMA = 10.0


def make_arrivals(requests: Sequence[Request], sigma: float | None, seed: int) -> list[Arrival]:
    """Add predicted output lengths to the requests: real length x exp(normal error of `sigma`).

    With `sigma` 0 the predictions are perfect; with None there are none. Requests without arrival
    times are offline. Raises `WorkloadError` for prompts given as text.
    """
    rng = random.Random(f"predictions {seed}")
    arrivals: list[Arrival] = []
    for request in requests:
        if isinstance(request.prompt, str):
            raise WorkloadError("the simulator needs prompt_token_ids, not text")
        before = 0
        if request.after is not None:
            last = arrivals[request.after]
            before = last.num_prompt_tokens + last.output_len
        error = rng.gauss(0.0, 1.0)
        predicted_len = 0
        if sigma is not None:
            predicted_len = max(1, round(request.max_tokens * exp(sigma * error)))
        arrivals.append(
            Arrival(
                request.arrival_s or 0.0,
                before + len(request.prompt),
                request.max_tokens,
                predicted_len,
                offline=request.arrival_s is None,
                prompt=request.prompt,
                after=request.after,
            )
        )
    return arrivals


def share_of(bound: Bound, run: Run) -> dict[str, Any]:
    """Return the bound of a run in seconds, its part of the makespan, and what it is set by."""
    return {
        "bound_s": bound.makespan_s,
        "share_of_bound": bound.makespan_s / run.makespan_s,
        "bound_set_by": bound.limit,
    }


def summarise(run: Run) -> dict[str, Any]:
    """Return the figures of a run as one JSON object."""
    num_output = sum(times.output_len for times in run.sequences)
    num_prompt = sum(times.num_prompt_tokens for times in run.sequences)
    until_drain = zip(run.busy_before_drain_s, run.drain_began_at, strict=True)
    return {
        "output_tokens_per_s": num_output / run.makespan_s,
        "total_tokens_per_s": (num_output + num_prompt) / run.makespan_s,
        "makespan_s": run.makespan_s,
        "drain_began_s": min(run.drain_began_at),
        "bubble_ratio": [1 - busy / run.makespan_s for busy in run.busy_s],
        "bubble_ratio_before_drain": [1 - busy / end if end else 0.0 for busy, end in until_drain],
        "ttft_s": spread(times.first_token_at - times.arrived_at for times in run.sequences),
        "tpot_s": spread(
            (times.ended_at - times.first_token_at) / (times.output_len - 1)
            for times in run.sequences
            if times.output_len > 1
        ),
        "num_requests": len(run.sequences),
        "num_output_tokens": num_output,
        "num_prompt_tokens": num_prompt,
        "prefix_hit_rate": run.counters.prefix_hits / max(1, run.counters.prefix_queries),
        **{
            name: count
            for name, count in asdict(run.counters).items()
            if name in ("switches", "steals", "preemptions", "recomputed_tokens", "steps")
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tdpipe simulate`. Returns 0, or 2 after an error in the options or the run."""
    options, rest = _parser().parse_known_args(argv)
    router = None
    try:
        if options.macro is not None:
            router, rest = router_settings(rest)
        elif options.prefill_instances is not None:
            raise HardwareError("--prefill-instances needs --macro N, the number of instances")
        _check_outputs(options)
        options.stages = num_stages_of(options)
        config = load([*rest, f"--pipeline-parallel-size={options.stages}"], {}).engine
        hardware = hardware_of(options)
        sigma = {"oracle": 0.0, "constant": None, "noisy": options.prediction_sigma}
        arrivals = make_arrivals(
            workload_of(options, simulated=True), sigma[options.prediction], options.seed
        )
        node = hardware.node(
            options.stages, config.cache.block_size, config.model.max_model_len or 2048
        )
        node = replace(
            node,
            engine_s=options.engine_ms / 1000,
            num_slices=config.pipeline.virtual_pipeline_size,
        )
        if not node.num_blocks:
            raise HardwareError(f"--kv-tokens are fewer than a block, {config.cache.block_size}")
        began_at = perf_counter()
        if router is not None:
            kv_bytes = getattr(hardware, "kv_bytes_per_token", 0.0)
            figures = simulate_instances(options, router, config, node, arrivals, kv_bytes)
            figures["took_s"] = perf_counter() - began_at
            print(json.dumps(figures) if options.json else macro_table(figures))
            return 0
        wants_spans = options.trace is not None or options.timeline is not None
        run = simulate(config, node, arrivals, record=wants_spans)
    except (
        ConfigError,
        WorkloadError,
        SimulationError,
        ImpossibleSettingsError,
        OSError,
        *ERRORS,
    ) as error:
        print(f"tdpipe: error: {error}", file=sys.stderr)
        return 2
    cached = cached_tokens(arrivals) if config.cache.enable_prefix_caching else None
    figures = {
        "policy": config.scheduler.policy,
        **summarise(run),
        **share_of(bound_of(node, config.cache.block_size, arrivals, cached), run),
        "took_s": perf_counter() - began_at,
    }
    print(json.dumps(figures) if options.json else _table(figures))
    if options.trace is not None:
        _write_trace(run, options.trace, options.stages)
    if options.timeline is not None:
        title = f"{config.scheduler.policy}, {options.stages} stages, {options.workload}"
        draw(run.spans, run.gauges, options.timeline, title=title)
    return 0


def _check_outputs(options: argparse.Namespace) -> None:
    """Check the output files before the run. Raises `OSError`."""
    if options.trace is not None and options.trace == options.timeline:
        raise OutputFileError(f"--trace and --timeline are the same file {options.trace}")
    marks = {options.trace: TRACE_MARK, options.timeline: TIMELINE_MARK}
    given = {path: mark for path, mark in marks.items() if path is not None}
    check_outputs(given, overwrite=options.overwrite)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tdpipe simulate",
        description="Serve a workload in virtual time with the production scheduler.",
        epilog=KINDS
        + "\nall settings of `tdpipe serve` that affect scheduling are accepted, e.g. --policy",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_hardware_options(parser)
    add_workload_options(parser)
    add_macro_options(parser)
    add = parser.add_argument
    add(
        "--prediction",
        choices=("oracle", "noisy", "constant"),
        default="noisy",
        help="predicted output lengths: exact, with an error, or none [noisy]",
    )
    add(
        "--prediction-sigma",
        type=_sigma,
        default=0.5,
        help="standard deviation of ln(predicted / real) [0.5]",
    )
    add("--json", action="store_true", help="print one JSON object")
    add("--trace", type=Path, help="write a Chrome/Perfetto trace")
    add("--timeline", type=picture, help="draw the timeline of the stages (.png, .svg, .pdf)")
    add(
        "--overwrite",
        action="store_true",
        help="replace files that are no trace and no timeline",
    )
    return parser


def _sigma(text: str) -> float:
    sigma = not_negative(text)
    if sigma > MOST_SIGMA:
        raise argparse.ArgumentTypeError(f"{text} is more than {MOST_SIGMA}")
    return sigma


def _table(figures: dict[str, Any]) -> str:
    rows = [
        ("output", f"{figures['output_tokens_per_s']:,.1f} tokens/s"),
        ("prompt and output", f"{figures['total_tokens_per_s']:,.1f} tokens/s"),
        ("makespan", f"{figures['makespan_s']:,.1f} s, {figures['num_requests']:,} requests"),
        (
            "lower bound",
            f"{figures['bound_s']:,.1f} s, set by {figures['bound_set_by']}: "
            f"{figures['share_of_bound']:.1%} reached",
        ),
        ("prefix cache", f"{figures['prefix_hit_rate']:.1%} of the tokens were cached"),
        ("bubble ratio", " ".join(f"{ratio:.3f}" for ratio in figures["bubble_ratio"])),
        (
            "before the drain",
            " ".join(f"{ratio:.3f}" for ratio in figures["bubble_ratio_before_drain"])
            + f" (until {figures['drain_began_s']:,.1f} s)",
        ),
        *((name, f"{figures[name]:,}") for name in ("steps", "switches", "steals", "preemptions")),
        *(
            (name, "  ".join(f"{key} {value:.3f}" for key, value in figures[key_s].items()))
            for name, key_s in (("TTFT, s", "ttft_s"), ("TPOT, s", "tpot_s"))
            if figures[key_s]
        ),
        ("simulated in", f"{figures['took_s']:.1f} s"),
    ]
    lines = [f"{name:20}{value}" for name, value in rows]
    return "\n".join([f"policy              {figures['policy']}", *lines])


def _write_trace(run: Run, path: Path, num_stages: int) -> None:
    with TraceWriter(path, num_stages) as trace:
        for span in run.spans:
            trace.write_span(span)
        for gauges in run.gauges:
            trace.write_gauges(gauges)
