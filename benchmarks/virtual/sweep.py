"""temporal against every other policy, in many set-ups: `make sweep`.

1, 2, 4 and 8 stages; short, long, mixed, prompt-heavy and answer-heavy lengths; a KV cache that is
tight or ample; with oracle, noisy (sigma 0.5) or no length predictions. Prints a line for each,
with the best other policy and temporal's ratio to it; those where temporal loses more than 2 % are
marked.

Requests of the same length that share a tight cache end in groups, and where the groups end
relative to the end of the work is chance: 2 % more requests move a policy's rate by up to 5 %. Such
a case is therefore the mean of three numbers of requests.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from benchmarks.virtual.paper import (
    MAX_MODEL_LEN,
    POLICIES,
    PROFILES,
    SETUPS,
    Settings,
    hardware_of_setup,
)
from configs.config import EngineConfig
from simulator.arrival import Arrival
from simulator.bound import bound_of
from simulator.command import make_arrivals
from simulator.hardware.hardware import Hardware
from simulator.simulation import simulate
from simulator.workloads.make_workload import make_workload

WORKLOADS = {
    "mixed": "sharegpt:1200",
    "short": "fixed:1500:64:48",
    "long": "fixed:250:900:600",
    "prompts": "fixed:600:1000:24",
    "answers": "fixed:500:32:500",
}
KV_PARTS = {"tight": 0.15, "ample": 1.0}
PREDICTIONS = {"oracle": 0.0, "sigma 0.5": 0.5, "constant": None}
CHANCES = (0.97, 1.0, 1.03)
"""Parts of the requests of a case that chance decides."""
STAGES = (1, 2, 4, 8)
WORST = 0.98
PREDICTING = ("td-pipe", "temporal")


@dataclass(frozen=True, slots=True)
class World:
    """One set-up, for all predictions."""

    label: str
    hardware: Hardware
    num_stages: int
    workload: str
    chances: Sequence[float]


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """Output tokens/s of temporal, of the best other policy, and of the bound."""

    case: str
    mine: float
    best: str
    its: float
    bound: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print the lines. Always returns 0, whatever the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.virtual.sweep", description=__doc__)
    parser.add_argument("--profiles", type=Path, default=PROFILES, help=f"[{PROFILES}]")
    options = parser.parse_args(argv)
    print("| case | temporal, tokens/s | of the bound | best other | tokens/s | ratio |")
    print("|---|--:|--:|---|--:|--:|")
    ratios = []
    worlds = list(_worlds(options.profiles))
    with ProcessPoolExecutor(mp_context=get_context("fork")) as processes:
        outcomes = processes.map(compare, worlds)
        for outcome in chain.from_iterable(tqdm(outcomes, total=len(worlds), file=sys.stderr)):
            ratios.append(outcome.mine / outcome.its)
            mark = " **<**" if ratios[-1] < WORST else ""
            print(
                f"| {outcome.case} | {outcome.mine:,.0f} | {outcome.mine / outcome.bound:.3f} "
                f"| {outcome.best} | {outcome.its:,.0f} | {ratios[-1]:.3f}{mark} |",
                flush=True,
            )
    behind = sum(ratio < WORST for ratio in ratios)
    print(
        f"\n{len(ratios)} cases: ratio from {min(ratios):.3f} to {max(ratios):.3f}, "
        f"below {WORST} in {behind}."
    )
    return 0


def compare(world: World) -> list[SweepOutcome]:
    """temporal against the others in one set-up, for each quality of predictions."""
    workloads = [make_workload(name, seed=0) for name in _variants(world)]
    bound = fmean(_bound(world, make_arrivals(requests, None, 0)) for requests in workloads)
    outcomes, known = [], dict[str, float]()
    for prediction, sigma in PREDICTIONS.items():
        arrivals = [make_arrivals(requests, sigma, 0) for requests in workloads]
        rates = dict(known)
        for name, settings in POLICIES.items():
            if name not in rates:
                rates[name] = fmean(_rate(world, variant, settings) for variant in arrivals)
        known = {n: rate for n, rate in rates.items() if POLICIES[n]["policy"] not in PREDICTING}
        mine = rates.pop("temporal")
        best = max(rates, key=lambda name: rates[name])
        case = f"{world.label}, {prediction}"
        outcomes.append(SweepOutcome(case, mine, best, rates[best], bound))
    return outcomes


def _worlds(folder: Path) -> Iterator[World]:
    for setup, num_stages, (kind, workload), (kv, part) in product(
        SETUPS, STAGES, WORKLOADS.items(), KV_PARTS.items()
    ):
        hardware, _ = hardware_of_setup(setup, folder)
        hardware = replace(hardware, kv_tokens=int(hardware.kv_tokens * part))
        label = f"{setup.name}, {num_stages} stages, {kind}, {kv}"
        is_chance = kv == "tight" and workload.startswith("fixed:")
        yield World(label, hardware, num_stages, workload, CHANCES if is_chance else (1.0,))


def _variants(world: World) -> list[str]:
    """The workload with each of the numbers of requests."""
    kind, count, *lengths = world.workload.split(":")
    return [":".join([kind, str(round(part * int(count))), *lengths]) for part in world.chances]


def _rate(world: World, arrivals: list[Arrival], settings: Settings) -> float:
    config = EngineConfig.of(
        **{"pipeline_parallel_size": world.num_stages, "max_num_seqs": 4096, **settings}
    )
    node = world.hardware.node(world.num_stages, config.cache.block_size, MAX_MODEL_LEN)
    run = simulate(config, node, arrivals)
    return sum(times.output_len for times in run.sequences) / run.makespan_s


def _bound(world: World, arrivals: list[Arrival]) -> float:
    """Output tokens/s that no policy can exceed."""
    block_size = EngineConfig().cache.block_size
    node = world.hardware.node(world.num_stages, block_size, MAX_MODEL_LEN)
    seconds = bound_of(node, block_size, arrivals).makespan_s
    return sum(arrival.output_len for arrival in arrivals) / seconds


if __name__ == "__main__":
    raise SystemExit(main())
