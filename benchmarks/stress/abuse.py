"""Sends ten thousand malformed requests in parallel with good ones: `make abuse`.

A daemon with the demo model answers a steady load of good requests, first by themselves and then
while malformed requests arrive. The command prints Markdown: the outcomes of the malformed requests
by kind, and the latencies of the good ones.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.call import call_of
from bench.exchange import Address
from bench.load_run import Bounds
from bench.machine import describe_machine
from bench.measurement import measure
from bench.server import LoadTarget
from benchmarks.daemon_run import log_of, serving
from benchmarks.stress.attack import Attack
from benchmarks.stress.malformed import malformed
from benchmarks.stress.memory import Memory, process_of
from configs.schema.model import DEMO_MODEL
from simulator.argument_types import positive, positive_int
from simulator.workloads.make_workload import make_workload, with_arrivals

BOUNDS = Bounds(request_timeout_s=60.0, timeout_s=1200.0)
# The limit on the end-to-end latency of good requests during the attack, relative to the baseline.
MAX_RATIO = 2.0
LATENCIES = ("ttft_s", "e2e_s")
_COLUMNS = ("2xx", "4xx", "5xx", "closed", "abandoned", "hung")


@dataclass(frozen=True, slots=True)
class AttackOutcome:
    """The outcome of both loads; `baseline` and `beside` are summaries of the good requests."""

    attack: Attack
    baseline: dict[str, Any]
    beside: dict[str, Any]
    before_mb: float
    peak_mb: float

    @property
    def is_good(self) -> bool:
        """Whether no request hung or got 5xx, no good request failed, and good ones were fast.

        Fast means that their median end-to-end latency has risen at most `MAX_RATIO` times.
        """
        num_failed = self.baseline["num_failed"] + self.beside["num_failed"]
        return not (self.attack.failures() or num_failed) and self.ratio("e2e_s") <= MAX_RATIO

    def ratio(self, latency: str, figure: str = "p50") -> float:
        """Return the latency during the attack relative to the baseline."""
        return float(self.beside[latency][figure] / self.baseline[latency][figure])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; return 1 if a figure exceeds its limit."""
    options = _parser().parse_args(argv)
    print(f"machine: {json.dumps(describe_machine())}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "daemon"
        flags = ["--profile-seconds=0.3", "--no-access-log"]
        with (
            serving(DEMO_MODEL, 2, flags, folder) as url,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            outcome = runner.run(_run(Address.of(url), options))
        num_bugs = log_of(folder).count("Traceback")
    print("\n".join((*_table(outcome), "", *_latencies(outcome))))
    print(f"\nThe server: {outcome.before_mb:.0f} MB before, {outcome.peak_mb:.0f} MB at its most.")
    print(f"Tracebacks in the log: {num_bugs}.")
    return int(not outcome.is_good or num_bugs > 0)


async def _run(address: Address, options: argparse.Namespace) -> AttackOutcome:
    seconds = options.requests / options.rate
    attack, requests = Attack(address), list(malformed(options.requests))
    await _good(address, 5, options.good_rate)  # to warm up
    baseline = await _good(address, seconds, options.good_rate)
    with Memory(process_of("server")) as memory:
        async with asyncio.TaskGroup() as group:
            group.create_task(attack.run(requests, options.rate))
            good = group.create_task(_good(address, seconds, options.good_rate))
    return AttackOutcome(attack, baseline, good.result(), memory.before_mb, memory.peak_mb)


async def _good(address: Address, seconds: float, rate: float) -> dict[str, Any]:
    """The summary of good requests at this rate."""
    workload = make_workload(f"demo:{max(1, round(seconds * rate))}")
    requests = with_arrivals(workload, rate, burstiness=1.0, seed=0)
    calls = [*map(call_of, requests)]
    summary: dict[str, Any] = (await measure(calls, LoadTarget(address), BOUNDS))["summary"]
    return summary


def _table(outcome: AttackOutcome) -> Iterator[str]:
    yield f"| malformed | sent | {' | '.join(_COLUMNS)} |"
    yield f"|---|--:|{'--:|' * len(_COLUMNS)}"
    everything: Counter[int | str] = Counter()
    for kind, outcomes in outcome.attack.outcomes.items():
        everything += outcomes
        yield _row(kind, outcomes)
    yield _row("all", everything)


def _row(kind: str, outcomes: Counter[int | str]) -> str:
    counts = Counter[str]()
    for what, count in outcomes.items():
        counts[f"{what // 100}xx" if isinstance(what, int) else what.split()[0]] += count
    columns = (outcomes.total(), *(counts[column] for column in _COLUMNS))
    return f"| {kind} | {' | '.join(map(str, columns))} |"


def _latencies(outcome: AttackOutcome) -> Iterator[str]:
    yield (
        "| good requests, ms | by themselves p50 | p90 | p99 "
        "| in parallel p50 | p90 | p99 | ratio of p50 |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for latency in LATENCIES:
        figures = [
            f"{1000 * summary[latency][percentile]:.0f}"
            for summary in (outcome.baseline, outcome.beside)
            for percentile in ("p50", "p90", "p99")
        ]
        name = latency.removesuffix("_s").upper()
        yield " | ".join((f"| {name}", *figures, f"{outcome.ratio(latency):.2f} |"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.stress.abuse", description=__doc__)
    add = parser.add_argument
    add(
        "--requests", type=positive_int, default=10_000, help="number of malformed requests [10000]"
    )
    add("--rate", type=positive, default=50.0, help="malformed requests per second [50]")
    add("--good-rate", type=positive, default=4.0, help="good requests per second [4]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
