"""temporal against the hybrids and td-pipe with online traffic: `make online-sweep`.

ShareGPT-like requests arrive at the nodes of the paper with 1 to 8 stages, as a Poisson process or
in bursts, at 10 to 110 % of the capacity, which is the rate that no schedule can exceed
(`simulator/bound.py`). Output lengths are not predicted. The goodput of a policy is the rate of the
requests that meet both targets: the time to the first token (`--ttft-slo`) and the time per output
token after it (`--tpot-slo`). The policies do not know the targets. Where a single row already
takes more than two thirds of the second target, the target is 1.5 times the time of that row.

The first table has each policy's goodput over the best one, as the mean over the stages and in the
worst case. The second one has the times per output token.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median

from tqdm import tqdm

from benchmarks.virtual.paper import (
    MAX_MODEL_LEN,
    MODELLED,
    PROFILES,
    SETUPS,
    Settings,
    hardware_of_setup,
)
from configs.config import EngineConfig
from engine.costs.cost_model import CostModel, StepSize
from simulator.argument_types import positive
from simulator.arrival import Targets
from simulator.bound import bound_of
from simulator.command import make_arrivals
from simulator.hardware.hardware import Hardware
from simulator.pipeline import Node
from simulator.simulation import Run, simulate
from simulator.workloads.make_workload import make_workload, with_arrivals
from simulator.workloads.request import Request

NODES = (*SETUPS, *(setup for setup in MODELLED if setup.gpu.startswith("A100")))
"""The four nodes of the paper, those with L20 by their published profiles."""

POLICIES: dict[str, Settings] = {
    "td-pipe": {"policy": "td-pipe"},
    "hybrid vllm": {"policy": "hybrid", "hybrid": "vllm"},
    "hybrid throttled": {"policy": "hybrid"},
    "temporal": {"policy": "temporal"},
}
STAGES = (1, 2, 4, 8)
# Shapes of the gaps between arrivals, see `arrival_times`.
ARRIVALS = {"Poisson": 1.0, "bursts": 0.25}
LOADS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.1)
MODERATE = (0.3, 0.5, 0.7)
"""Loads at which the times per output token are compared."""
CAPACITY_REQUESTS = 5000
DURATION_S, LEAST_REQUESTS = 60.0, 100
# The least target for the time per output token, in times of a single row.
LEAST_TPOT = 1.5
WORST = 0.98
SEED = 0


@dataclass(frozen=True, slots=True)
class World:
    """One node, its stages and its arrivals, for all loads."""

    node: str
    hardware: Hardware
    num_stages: int
    arrivals: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """By policy: requests/s within the targets, and the median of the seconds per output token."""

    world: World
    load: float
    goodput: Mapping[str, float]
    tpot_s: Mapping[str, float]

    def shares(self) -> dict[str, float]:
        """Each policy's goodput over the best policy's; 1 if no request met the targets."""
        best = max(self.goodput.values())
        return {name: rate / best if best else 1.0 for name, rate in self.goodput.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables. Always returns 0, whatever the ratios."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.virtual.online_sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--ttft-slo", type=positive, default=5.0, help="seconds to the first token [5]")
    add("--tpot-slo", type=positive, default=0.1, help="seconds per output token [0.1]")
    add("--profiles", type=Path, default=PROFILES, help=f"[{PROFILES}]")
    options = parser.parse_args(argv)
    targets = Targets(options.ttft_slo, options.tpot_slo)
    worlds = list(_worlds(options.profiles))
    with ProcessPoolExecutor(mp_context=get_context("fork")) as processes:
        runs = processes.map(compare, worlds, [targets] * len(worlds))
        outcomes = list(chain.from_iterable(tqdm(runs, total=len(worlds), file=sys.stderr)))
    for part in (_goodput_table, _behind, _tpot_table):
        print("\n".join([*part(outcomes), ""]))
    return 0


def compare(world: World, targets: Targets) -> list[Outcome]:
    """Every policy in one world, at each load."""
    capacity = capacity_of(world)
    targets = reachable(targets, _node(world))
    return [at_load(world, targets, load, load * capacity) for load in LOADS]


def capacity_of(world: World) -> float:
    """Requests/s that no schedule can exceed, if all requests are present at the start."""
    requests = make_workload(f"sharegpt:{CAPACITY_REQUESTS}", seed=SEED)
    block_size = EngineConfig().cache.block_size
    bound = bound_of(_node(world), block_size, make_arrivals(requests, None, SEED))
    return len(requests) / bound.makespan_s


def reachable(targets: Targets, node: Node) -> Targets:
    """The targets, with at least `LEAST_TPOT` times the seconds of a single row per token."""
    row = StepSize(num_tokens=1, num_rows=1)
    row_s = sum(CostModel.of(costs).step_s(row) for costs in node.costs)
    row_s += len(node.costs) * (node.overhead_s + node.hop_s)
    return Targets(targets.ttft_s, max(targets.tpot_s, LEAST_TPOT * row_s))


def at_load(world: World, targets: Targets, load: float, rate: float) -> Outcome:
    """Every policy with the same arrivals, `rate` requests per second."""
    count = max(LEAST_REQUESTS, round(rate * DURATION_S))
    requests = make_workload(f"sharegpt:{count}", seed=SEED)
    requests = with_arrivals(requests, rate, ARRIVALS[world.arrivals], SEED)
    runs = {name: _run(world, requests, settings) for name, settings in POLICIES.items()}
    return Outcome(
        world,
        load,
        {name: rate * fmean(map(targets.are_met, run.sequences)) for name, run in runs.items()},
        {name: median(times.tpot_s for times in run.sequences) for name, run in runs.items()},
    )


def _worlds(folder: Path) -> Iterator[World]:
    for setup, num_stages, arrivals in product(NODES, STAGES, ARRIVALS):
        hardware, _ = hardware_of_setup(setup, folder)
        yield World(setup.name, hardware, num_stages, arrivals)


def _node(world: World) -> Node:
    return world.hardware.node(world.num_stages, EngineConfig().cache.block_size, MAX_MODEL_LEN)


def _run(world: World, requests: Sequence[Request], settings: Settings) -> Run:
    config = EngineConfig.of(
        **{"pipeline_parallel_size": world.num_stages, "max_num_seqs": 4096, **settings}
    )
    return simulate(config, _node(world), make_arrivals(requests, None, SEED))


def _goodput_table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "Goodput over the best policy's, mean over the stages (worst):\n"
    yield f"| node | arrivals | load | {' | '.join(POLICIES)} |"
    yield "|---|---|--:|" + "--:|" * len(POLICIES)
    for node, arrivals, load in product(_nodes(outcomes), ARRIVALS, LOADS):
        case = (node, arrivals, load)
        chosen = [o for o in outcomes if (o.world.node, o.world.arrivals, o.load) == case]
        yield f"| {node} | {arrivals} | {load:.0%} | {_means(chosen)} |"
    yield f"| all | all | all | {_means(outcomes)} |"


def _means(outcomes: Sequence[Outcome]) -> str:
    shares = [outcome.shares() for outcome in outcomes]
    columns = ([by_name[name] for by_name in shares] for name in POLICIES)
    return " | ".join(f"{fmean(column):.3f} ({min(column):.3f})" for column in columns)


def _behind(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The cases in which temporal loses."""
    behind = [outcome for outcome in outcomes if outcome.shares()["temporal"] < WORST]
    num_cases = len(outcomes)
    yield f"temporal is below {WORST} of the best policy in {len(behind)} of {num_cases} cases."
    for outcome in behind:
        world, shares = outcome.world, outcome.shares()
        case = f"{world.node}, {world.num_stages} stages, {world.arrivals}, {outcome.load:.0%}"
        best = max(shares, key=lambda name: shares[name])
        yield f"- {case}: {shares['temporal']:.3f}, the best is {best}"


def _tpot_table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "Median time per output token, ms, mean over stages and arrivals:\n"
    yield f"| node | load | {' | '.join(POLICIES)} | temporal over throttled (worst) |"
    yield "|---|--:|" + "--:|" * (len(POLICIES) + 1)
    for node, load in product(_nodes(outcomes), MODERATE):
        chosen = [o for o in outcomes if (o.world.node, o.load) == (node, load)]
        cells = [f"{1000 * fmean(o.tpot_s[policy] for o in chosen):.0f}" for policy in POLICIES]
        ratios = [o.tpot_s["temporal"] / o.tpot_s["hybrid throttled"] for o in chosen]
        cells.append(f"{fmean(ratios):.3f} ({max(ratios):.3f})")
        yield f"| {node} | {load:.0%} | {' | '.join(cells)} |"


def _nodes(outcomes: Iterable[Outcome]) -> list[str]:
    return list(dict.fromkeys(outcome.world.node for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
