"""Goodput of many instances behind a router: `make macro`.

For each cluster and workload, the highest rate at which 90 % and 99 % of all requests meet both
targets, by system. Each system has the same 16 L20 GPUs: four or eight tensor-parallel GPUs per
instance, over PCIe.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from math import prod
from multiprocessing import get_context

from tqdm import tqdm

from benchmarks.virtual.macro.goodput import Search
from benchmarks.virtual.macro.systems import (
    CLUSTERS,
    ECOSERVE,
    SYSTEMS,
    VLLM_LIKE,
    WORKLOADS,
    Cluster,
    Disaggregated,
    System,
    Traffic,
    Workload,
)

ATTAINMENTS = (0.9, 0.99)

Case = tuple[Cluster, Workload, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables. Always returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.virtual.macro",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--attainments", nargs="*", type=float, default=ATTAINMENTS, help="shares [0.9 0.99]")
    add("--systems", nargs="*", help="names of systems [all]")
    add("--models", nargs="*", default=[cluster.model for cluster in CLUSTERS])
    add(
        "--until-decode",
        action="store_true",
        help="count the wait for the first decode step as time to the first token",
    )
    options = parser.parse_args(argv)
    clusters = [cluster for cluster in CLUSTERS if cluster.model in options.models]
    systems = [s for s in SYSTEMS if options.systems is None or s.name in options.systems]
    workloads = [_with_targets(each, until_decode=options.until_decode) for each in WORKLOADS]
    cases: list[Case] = list(product(clusters, workloads, options.attainments))
    jobs = [(system, *case) for case in cases for system in systems]
    with ProcessPoolExecutor(mp_context=get_context("fork")) as processes:
        rates = list(tqdm(processes.map(_goodput, jobs), total=len(jobs), file=sys.stderr))
    by_case = dict(zip(cases, zip(*[iter(rates)] * len(systems), strict=True), strict=True))
    print("\n".join(_table(by_case, [system.name for system in systems])))
    return 0


def _with_targets(workload: Workload, *, until_decode: bool) -> Workload:
    return replace(workload, targets=replace(workload.targets, until_decode=until_decode))


def _goodput(job: tuple[System | Disaggregated, Cluster, Workload, float]) -> float:
    system, cluster, workload, attainment = job
    return Search(system, cluster, Traffic(workload, 1.0), attainment).goodput()


def _table(by_case: dict[Case, tuple[float, ...]], names: list[str]) -> Iterator[str]:
    yield f"| model | workload | attainment | {' | '.join(names)} |"
    yield "|---|---|--:|" + "--:|" * len(names)
    for (cluster, workload, attainment), rates in by_case.items():
        cells = " | ".join(f"{rate:.1f}" for rate in rates)
        yield f"| {cluster.model} | {workload.name} | {attainment:.0%} | {cells} |"
    attainments = dict.fromkeys(attainment for _, _, attainment in by_case)
    for base, attainment in product((VLLM_LIKE.name, ECOSERVE.name), attainments):
        if base in names:
            at = names.index(base)
            chosen = [rates for (_, _, share), rates in by_case.items() if share == attainment]
            cells = " | ".join(_mean_ratio(chosen, i, at) for i in range(len(names)))
            yield f"| all | over {base} | {attainment:.0%} | {cells} |"


def _mean_ratio(rows: list[tuple[float, ...]], i: int, base: int) -> str:
    """The geometric mean of the ratios, of the rows in which both have a goodput."""
    ratios = [rates[i] / rates[base] for rates in rows if rates[i] and rates[base]]
    return f"{prod(ratios) ** (1 / len(ratios)):.2f}x" if ratios else "-"


if __name__ == "__main__":
    raise SystemExit(main())
