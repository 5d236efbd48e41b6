"""The effect of the order of a batch's requests, in the simulator.

    python -m benchmarks.virtual.batch_order [--requests 5000]

ShareGPT-like requests on the paper's nodes with a measured profile, with as many open as the server
admits by default. Their limits are random: max_tokens = real length x exp(|N(0, slack)|). Each
policy gets the requests in the file's order; with the last two windows sorted by max_tokens, the
longest first, as `server.batches` does; with all of them sorted like this; and in the file's order,
but all at once. Prints Markdown.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from math import exp
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from benchmarks.virtual.paper import MAX_MODEL_LEN, NUM_GPUS, PROFILES, SETUPS, hardware_of_setup
from configs.config import EngineConfig
from simulator.argument_types import positive_int
from simulator.arrival import Arrival
from simulator.command import make_arrivals, summarise
from simulator.simulation import simulate
from simulator.workloads.make_workload import make_workload

POLICIES = ("td-pipe", "temporal", "hybrid")
SIGMA = 0.5
"""Sigma of the errors of the length predictions."""
IN_ORDER, LAST, ALL, AT_ONCE = "file's order", "last two windows", "all", "file's order, at once"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.virtual.batch_order",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=positive_int, default=5000, help="[5000]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--slack", type=float, default=0.5, help="of max_tokens, see above [0.5]")
    parser.add_argument("--profiles", type=Path, default=PROFILES, help=f"[{PROFILES}]")
    options = parser.parse_args(argv)
    orders = (IN_ORDER, LAST, ALL, AT_ONCE)
    jobs = [(i, p, order) for i in range(len(SETUPS)) for p in POLICIES for order in orders]
    with ProcessPoolExecutor(mp_context=get_context("fork")) as processes:
        runs = processes.map(_rate, *zip(*jobs, strict=True), [options] * len(jobs))
        rates = dict(zip(jobs, tqdm(runs, total=len(jobs), file=sys.stderr), strict=True))
    print(f"| {options.requests:,} requests | policy | " + " | ".join(orders) + " |")
    print("|---|---|" + "--:|" * len(orders))
    for i, setup in enumerate(SETUPS):
        for policy in POLICIES:
            base = rates[i, policy, IN_ORDER]
            cells = [f"{rates[i, policy, order] / base:.3f}" for order in orders[1:]]
            print(f"| {setup.name} | {policy} | {base:,.0f} | {' | '.join(cells)} |")
    return 0


def ordered(arrivals: Sequence[Arrival], limits: Sequence[int], num_in_order: int) -> list[Arrival]:
    """Keep the first `num_in_order`; sort the rest by `limits`, the longest first.

    Limits with the same number of bits count as equal, so that their requests keep their order.
    """
    rest = range(max(0, num_in_order), len(arrivals))
    longest_first = sorted(rest, key=lambda i: -limits[i].bit_length())
    return [*arrivals[: rest.start], *(arrivals[i] for i in longest_first)]


def _rate(setup: int, policy: str, order: str, options: argparse.Namespace) -> float:
    """Output tokens/s."""
    requests = make_workload(f"sharegpt:{options.requests}", seed=options.seed)
    rng = random.Random(f"limits {options.seed}")
    limits = [round(r.max_tokens * exp(abs(rng.gauss(0.0, options.slack)))) for r in requests]
    config = EngineConfig.of(pipeline_parallel_size=NUM_GPUS, policy=policy)
    window = 2 * config.max_live
    num_in_order = {LAST: len(requests) - 2 * window, ALL: 0}.get(order, len(requests))
    arrivals = make_arrivals(requests, SIGMA, options.seed)
    hardware, _ = hardware_of_setup(SETUPS[setup], options.profiles)
    run = simulate(
        config,
        hardware.node(NUM_GPUS, config.cache.block_size, MAX_MODEL_LEN),
        ordered(arrivals, limits, num_in_order),
        max_open=None if order == AT_ONCE else window,
    )
    rate: float = summarise(run)["output_tokens_per_s"]
    return rate


if __name__ == "__main__":
    raise SystemExit(main())
