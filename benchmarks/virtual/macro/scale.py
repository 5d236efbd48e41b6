"""Goodput by the number of instances, by burstiness, and without each idea: `make macro-scale`."""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from tqdm import tqdm

from benchmarks.virtual.macro.goodput import Search
from benchmarks.virtual.macro.systems import (
    ECOSERVE,
    TDPIPE,
    VLLM_LIKE,
    WORKLOADS,
    Cluster,
    System,
    Traffic,
    Workload,
)

MODEL, NUM_GPUS = "codellama-34b", 4
INSTANCES = (1, 2, 4, 8)
CVS = (1.0, 1.2, 1.5, 2.0)
ATTAINMENT = 0.9
SHAREGPT = WORKLOADS[1]
ABLATIONS: dict[str, System] = {
    "all": TDPIPE,
    "mean slack": replace(TDPIPE, router=(("slack_quantile", "mean"),)),
    "no predicted lengths": replace(TDPIPE, router=(("predicted_lengths", False),)),
    "late requests not last": replace(TDPIPE, router=(("hopeless_last", False),)),
    "no prefix affinity": replace(TDPIPE, router=(("prefix_affinity", False),)),
    "least loaded": replace(TDPIPE, routing="least-loaded"),
    "round robin": replace(TDPIPE, routing="round-robin"),
    "EcoServe's routing": replace(TDPIPE, routing="ecoserve"),
    "no targets in the scheduler": replace(TDPIPE, engine=(("ttft_slo", None),)),
}

Job = tuple[System, int, Workload, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Print three tables. Always returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.virtual.macro.scale", description=__doc__
    )
    parser.parse_args(argv)
    systems = (VLLM_LIKE, ECOSERVE, TDPIPE)
    by_number = [(s, n, SHAREGPT, 1.0) for n in INSTANCES for s in systems]
    by_cv = [(s, 4, SHAREGPT, cv) for cv in CVS for s in systems]
    without: list[Job] = [(s, 4, SHAREGPT, 1.5) for s in ABLATIONS.values()]
    jobs: list[Job] = [*by_number, *by_cv, *without]
    with ProcessPoolExecutor(mp_context=get_context("fork")) as processes:
        rates = list(tqdm(processes.map(_goodput, jobs), total=len(jobs), file=sys.stderr))
    heads = " | ".join(system.name for system in systems)
    first, second = len(by_number), len(by_number) + len(by_cv)
    print(f"| instances | {heads} |\n|--:|{'--:|' * len(systems)}")
    _print_rows(INSTANCES, rates[:first], len(systems))
    print(f"\n| CV of the gaps | {heads} |\n|--:|{'--:|' * len(systems)}")
    _print_rows(CVS, rates[first:second], len(systems))
    print("\n| tdpipe, CV 1.5 | requests/s |\n|---|--:|")
    _print_rows(ABLATIONS, rates[second:], 1)
    return 0


def _print_rows(
    names: Sequence[object] | dict[str, System], rates: list[float], width: int
) -> None:
    for i, name in enumerate(names):
        cells = " | ".join(f"{rate:.1f}" for rate in rates[i * width : (i + 1) * width])
        print(f"| {name} | {cells} |")


def _goodput(job: Job) -> float:
    system, num_instances, workload, cv = job
    cluster = Cluster(MODEL, NUM_GPUS, num_instances)
    return Search(system, cluster, Traffic(workload, 1.0, cv), ATTAINMENT).goodput()


if __name__ == "__main__":
    raise SystemExit(main())
