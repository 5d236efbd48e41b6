"""Goodput by the number of instances, by burstiness, and without each idea: `make macro-scale`.

Prefix affinity is compared in conversations, since nothing else has common prefixes; and offline
requests by what online ones lose and by the offline tokens, not by goodput.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

from tqdm import tqdm

from benchmarks.virtual.macro.goodput import Search
from benchmarks.virtual.macro.systems import (
    ECOSERVE,
    SIGMA,
    TDPIPE,
    VLLM_LIKE,
    WORKLOADS,
    Cluster,
    System,
    Traffic,
    Workload,
)
from simulator.arrival import SequenceTimes
from simulator.command import make_arrivals
from simulator.workloads.make_workload import make_workload

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

CHAT = Workload("chat", SHAREGPT.targets, 240.0, num_turns=6, turn="200:100")
AFFINITY: dict[str, System] = {
    "adaptive": TDPIPE,
    "adaptive, no prefix affinity": ABLATIONS["no prefix affinity"],
    "most of the prompt cached (`prefix`)": replace(TDPIPE, routing="prefix"),
    "least loaded": ABLATIONS["least loaded"],
    "round robin": ABLATIONS["round robin"],
}
ONLINE_RATE, NUM_OFFLINE = 28.0, 3000
OFFLINE: dict[str, System] = {
    "adaptive": TDPIPE,
    "EcoServe's routing": ABLATIONS["EcoServe's routing"],
    "least loaded": ABLATIONS["least loaded"],
}

Job = tuple[System, int, Workload, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Print five tables. Always returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.virtual.macro.scale", description=__doc__
    )
    parser.parse_args(argv)
    systems = (VLLM_LIKE, ECOSERVE, TDPIPE)
    by_number = [(s, n, SHAREGPT, 1.0) for n in INSTANCES for s in systems]
    by_cv = [(s, 4, SHAREGPT, cv) for cv in CVS for s in systems]
    without: list[Job] = [(s, 4, SHAREGPT, 1.5) for s in ABLATIONS.values()]
    talking: list[Job] = [(s, 4, CHAT, 1.0) for s in AFFINITY.values()]
    jobs: list[Job] = [*by_number, *by_cv, *without, *talking]
    with ProcessPoolExecutor(mp_context=get_context("fork")) as processes:
        rates = list(tqdm(processes.map(_goodput, jobs), total=len(jobs), file=sys.stderr))
        rows = list(processes.map(_offline_row, OFFLINE))
    heads = " | ".join(system.name for system in systems)
    first, second = len(by_number), len(by_number) + len(by_cv)
    third = second + len(without)
    print(f"| instances | {heads} |\n|--:|{'--:|' * len(systems)}")
    _print_rows(INSTANCES, rates[:first], len(systems))
    print(f"\n| CV of the gaps | {heads} |\n|--:|{'--:|' * len(systems)}")
    _print_rows(CVS, rates[first:second], len(systems))
    print("\n| tdpipe, CV 1.5 | requests/s |\n|---|--:|")
    _print_rows(ABLATIONS, rates[second:third], 1)
    print("\n| conversations of six turns | conversations/s |\n|---|--:|")
    _print_rows(AFFINITY, rates[third:], 1)
    print("\n| routing | online alone | online beside offline | offline tokens/s |")
    print("|---|--:|--:|--:|")
    print("\n".join(rows))
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


def _offline_row(name: str) -> str:
    """Online requests alone, and beside offline ones that are all there from the start."""
    system, cluster = OFFLINE[name], Cluster(MODEL, NUM_GPUS, 4)
    traffic = Traffic(SHAREGPT, ONLINE_RATE)
    online = traffic.arrivals(SIGMA)
    offline = make_arrivals(make_workload(SHAREGPT.named(NUM_OFFLINE), seed=1), SIGMA, 1)
    cells = []
    for arrivals in (online, [*online, *offline]):
        run = system.serve(cluster, SHAREGPT.targets, arrivals, _Ended(len(online)))
        met = sum(map(SHAREGPT.targets.are_met, run.sequences[: len(online)])) / len(online)
        cells.append(f"{met:.1%}")
    ended = [times for times in run.sequences[len(online) :] if times.ended_at >= 0]
    tokens = sum(times.num_prompt_tokens + times.output_len for times in ended)
    return f"| {name} | {' | '.join(cells)} | {tokens / run.makespan_s:,.0f} |"


@dataclass(frozen=True, slots=True)
class _Ended:
    """Whether the first requests have all ended."""

    count: int

    def __call__(self, sequences: Sequence[SequenceTimes], now: float) -> bool:
        """See `simulate_macro`."""
        del now
        return all(times.ended_at >= 0 for times in sequences[: self.count])


if __name__ == "__main__":
    raise SystemExit(main())
