"""`tdpipe simulate --macro N`: N instances behind a router, or divided into prefill and decode."""

import argparse
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from configs.command_line import Command
from configs.config import EngineConfig
from configs.loader import load_command
from configs.schema.router import RouterCoreConfig
from simulator.argument_types import not_negative, positive, positive_int, within
from simulator.arrival import Arrival, SequenceTimes, Targets
from simulator.macro.disaggregated import Link, simulate_disaggregated
from simulator.macro.instance import InstanceSpec
from simulator.macro.simulation import MacroRun, simulate_macro
from simulator.pipeline import Node
from simulator.simulation import SimulationError
from simulator.spread import spread

TTFT_SLO_S, TPOT_SLO_S = 5.0, 0.1
"""EcoServe's targets for ShareGPT, which instances have by default."""
MOST_INSTANCES = 256

ROUTER = Command(
    name="simulate",
    schema=RouterCoreConfig,
    description="The settings of `tdpipe route` that affect its decisions.",
    prefix="",
    common=("routing",),
    metavars={},
)


def add_macro_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a simulation with many instances."""
    add = parser.add_argument_group("many instances").add_argument
    add(
        "--macro",
        type=within(positive_int, 1, MOST_INSTANCES, "instances"),
        metavar="N",
        help="N instances of the node behind a router; its settings are accepted too, e.g. "
        "--routing (see tdpipe route --help)",
    )
    add(
        "--network-ms",
        type=within(not_negative, 1e-4, 10_000.0, "ms"),
        default=0.3,
        help="time between the router and an instance [0.3]",
    )
    add(
        "--boot-s",
        type=within(not_negative, 1e-3, 1e5, "s"),
        default=60.0,
        help="time until a new instance serves, with --actuator local [60]",
    )
    add(
        "--prefill-instances",
        type=within(positive_int, 1, MOST_INSTANCES, "instances"),
        metavar="P",
        help="divide the instances: P feed prompts and send their KV to the others, which decode",
    )
    add(
        "--kv-link",
        type=within(positive, 0.01, 50_000.0, "GB/s"),
        default=1.25,
        metavar="GB/S",
        help="with --prefill-instances: link of each instance [1.25, 10 GbE]",
    )
    add(
        "--shift-roles",
        action="store_true",
        help="with --prefill-instances: roles follow the load, as in Arrow",
    )


def router_settings(arguments: Sequence[str]) -> tuple[RouterCoreConfig, list[str]]:
    """The router's settings among the arguments, and the arguments without them.

    Raises `ConfigError`.
    """
    own: list[str] = []
    others: list[str] = []
    takes_value = None
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--").removeprefix("no-")
        if argument.startswith("--"):
            takes_value = own if name.replace("-", "_") in ROUTER.keys else others
        (others if takes_value is None else takes_value).append(argument)
    return load_command(ROUTER, own, {}), others


def simulate_instances(
    options: argparse.Namespace,
    router: RouterCoreConfig,
    config: EngineConfig,
    node: Node,
    arrivals: Sequence[Arrival],
    kv_bytes_per_token: float,
) -> dict[str, Any]:
    """Run the simulation that the options describe and return its figures.

    Raises `SimulationError`.
    """
    scheduler = config.scheduler
    targets = Targets(scheduler.ttft_slo or TTFT_SLO_S, scheduler.tpot_slo or TPOT_SLO_S)
    with_targets = config.replaced(ttft_slo=targets.ttft_s, tpot_slo=targets.tpot_s)
    spec, hop_s = InstanceSpec(with_targets, node), options.network_ms / 1000
    if options.prefill_instances is None:
        specs = [spec] * options.macro
        run = simulate_macro(router, specs, arrivals, hop_s=hop_s, boot_s=options.boot_s)
        return {"routing": router.routing.routing, **_figures(run, targets)}
    num_decode = options.macro - options.prefill_instances
    if num_decode < 1:
        raise SimulationError(f"--prefill-instances must be below --macro {options.macro}")
    if not kv_bytes_per_token:
        raise SimulationError("--prefill-instances needs --kv-bytes-per-token, or --gpu")
    if any(arrival.after is not None for arrival in arrivals):
        raise SimulationError("--prefill-instances does not support conversations (chat:...)")
    link = Link(options.kv_link * 1e9, kv_bytes_per_token)
    run = simulate_disaggregated(
        spec,
        options.prefill_instances,
        num_decode,
        link,
        arrivals,
        shifts=options.shift_roles,
        hop_s=hop_s,
    )
    routing = f"{options.prefill_instances} prefill, {num_decode} decode"
    return {"routing": routing, **_figures(run, targets)}


def _figures(run: MacroRun, targets: Targets) -> dict[str, Any]:
    ended = [times for times in run.sequences if times.ended_at >= 0]
    num_tokens = sum(times.output_len for times in ended)
    return {
        "num_requests": len(run.sequences),
        "num_refused": run.num_refused,
        "makespan_s": run.makespan_s,
        "output_tokens_per_s": num_tokens / run.makespan_s,
        "ttft_slo_s": targets.ttft_s,
        "tpot_slo_s": targets.tpot_s,
        "targets_met": _share(ended, len(run.sequences), targets),
        "ttft_s": spread(times.ttft_s for times in ended),
        "tpot_s": spread(times.tpot_s for times in ended if times.output_len > 1),
        "mean_instances": run.instance_seconds() / run.makespan_s,
        "prefix_hit_rate": run.hits / max(1, run.queries),
    }


def _share(ended: list[SequenceTimes], count: int, targets: Targets) -> float:
    return fmean([*map(targets.are_met, ended), *[False] * (count - len(ended))])


def macro_table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [
        ("routing", figures["routing"]),
        ("output", f"{figures['output_tokens_per_s']:,.1f} tokens/s"),
        ("makespan", f"{figures['makespan_s']:,.1f} s, {figures['num_requests']:,} requests"),
        (
            "targets met",
            f"{figures['targets_met']:.1%} within {figures['ttft_slo_s']:g} s to the first token "
            f"and {1000 * figures['tpot_slo_s']:g} ms per token",
        ),
        *(
            (name, "  ".join(f"{key} {value:.3f}" for key, value in figures[key_s].items()))
            for name, key_s in (("TTFT, s", "ttft_s"), ("TPOT, s", "tpot_s"))
            if figures[key_s]
        ),
        ("instances", f"{figures['mean_instances']:.2f} on average"),
        ("prefix cache", f"{figures['prefix_hit_rate']:.1%} of the tokens were cached"),
        ("refused", f"{figures['num_refused']:,}"),
    ]
    return "\n".join(f"{name:20}{value}" for name, value in rows)
