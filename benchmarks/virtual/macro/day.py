"""Mitosis under a daily curve: instances used against targets met: `make macro-day`.

The rate rises from a tenth of its peak to the peak and falls again, as a cosine, within a "day" of
a quarter of an hour; a new instance serves after 15 seconds. Each row is one way to choose the
number of instances: fixed ones, or the router's signals.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from math import cos, pi
from multiprocessing import get_context

from benchmarks.virtual.macro.scale import MODEL, NUM_GPUS
from benchmarks.virtual.macro.systems import SIGMA, TDPIPE, WORKLOADS, Cluster
from configs.schema.router import RouterCoreConfig
from simulator.arrival import Arrival
from simulator.command import make_arrivals
from simulator.macro.simulation import simulate_macro
from simulator.workloads.make_workload import make_workload

DAY_S = 900.0
LOWEST = 0.1
MOST = 5
SHAREGPT = WORKLOADS[1]
MITOSIS: dict[str, object] = {
    "number": 1,
    "actuator": "local",
    "max_instances": MOST,
    "macro_lower": 2,
    "macro_upper": 4,
    "scale_cooldown": 10.0,
}
WAYS: dict[str, dict[str, object]] = {
    "2 instances": {"number": 2},
    "3 instances": {"number": 3},
    "4 instances": {"number": 4},
    "mitosis, by load": MITOSIS,
    "mitosis, EcoServe's signals": {**MITOSIS, "scale_signal": "ecoserve"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Always returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.virtual.macro.day",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peak", type=float, default=30.0, help="requests per second [30]")
    parser.add_argument(
        "--boot", type=float, default=15.0, help="seconds until a new instance serves [15]"
    )
    options = parser.parse_args(argv)
    row_of = partial(_row, peak=options.peak, boot_s=options.boot)
    print("| | instances, mean (most) | targets met | instance hours per million met |")
    print("|---|--:|--:|--:|")
    with ProcessPoolExecutor(mp_context=get_context("fork")) as processes:
        for row in processes.map(row_of, WAYS):
            print(row, flush=True)
    return 0


def arrivals_of_a_day(peak: float, seed: int = 0) -> list[Arrival]:
    """Requests whose rate follows the curve."""
    times = list(_times(peak, random.Random(f"day {seed}")))
    requests = make_workload(f"{SHAREGPT.name}:{len(times)}", seed=seed)
    requests = [replace(r, arrival_s=at) for r, at in zip(requests, times, strict=True)]
    return make_arrivals(requests, SIGMA, seed)


def _times(peak: float, rng: random.Random) -> Iterator[float]:
    """A Poisson process with a changing rate, by thinning one with the rate of the peak."""
    now = rng.expovariate(peak)
    while now < DAY_S:
        share = LOWEST + (1 - LOWEST) * (1 - cos(2 * pi * now / DAY_S)) / 2
        if rng.random() < share:
            yield now
        now += rng.expovariate(peak)


def _row(name: str, peak: float, boot_s: float) -> str:
    settings = dict(WAYS[name])
    number = settings.pop("number")
    assert isinstance(number, int)
    spec = TDPIPE.spec(Cluster(MODEL, NUM_GPUS, number), SHAREGPT.targets)
    config = RouterCoreConfig.of(routing="adaptive", **settings)
    run = simulate_macro(config, [spec] * number, arrivals_of_a_day(peak), boot_s=boot_s)
    met = sum(map(SHAREGPT.targets.are_met, run.sequences))
    mean = run.instance_seconds() / run.makespan_s
    most = max(number for _, number in run.num_instances)
    hours = run.instance_seconds() / 3600 / met * 1e6
    return f"| {name} | {mean:.2f} ({most}) | {met / len(run.sequences):.1%} | {hours:.0f} |"


if __name__ == "__main__":
    raise SystemExit(main())
