"""The routing rules before real daemons: `make real-router`.

Four daemons with the demo model, one stage of one thread each, share this machine. First, one of
them is asked alone, one request after the other: multiples of its median TTFT and TPOT are the
targets of all. Then all requests at once through a router, twice, warm the four up and tell the
rate that they can serve (capacity). After that, the rules take turns: a router with each serves the
same Poisson arrivals of ShareGPT-like lengths at each rate, once a round, with the arrivals of that
round. Prints Markdown: the share of requests that met both targets, and latencies; medians over the
rounds.

    python -m benchmarks.real_router --rounds 1 --seconds 10
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from tqdm import tqdm

from bench.call import call_of
from bench.exchange import Address
from bench.load_run import Bounds
from bench.machine import describe_machine
from bench.measurement import measure
from bench.server import LoadError, LoadTarget
from benchmarks.daemon_run import log_of, routing, serving
from configs.schema.model import DEMO_MODEL
from simulator.argument_types import positive, positive_int
from simulator.workloads.make_workload import make_workload, with_arrivals
from simulator.workloads.request import Request

RULES = ("adaptive", "ecoserve", "round-robin", "least-loaded")
WORKLOAD, SCALE = "sharegpt", 0.5
NUM_ALONE, NUM_AT_ONCE, MOST = 12, 120, 0.75
REQUEST_TIMEOUT_S, RUN_TIMEOUT_S = 60.0, 240.0


@dataclass(frozen=True)
class Targets:
    """The targets of all daemons, in seconds."""

    ttft_s: float
    tpot_s: float

    @property
    def flags(self) -> list[str]:
        """As flags of `tdpipe serve`."""
        return [f"--ttft-slo={self.ttft_s}", f"--tpot-slo={self.tpot_s}"]

    def are_met(self, request: dict[str, Any]) -> bool:
        """Whether a request of a report was answered within them; one piece has no TPOT."""
        ttft_s, tpot_s = request["ttft_s"], request["tpot_s"]
        in_time = ttft_s is not None and ttft_s <= self.ttft_s
        return request["error"] is None and in_time and (tpot_s or 0.0) <= self.tpot_s


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table; return 1 if a process or a request failed."""
    options = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tdpipe-router-") as temporary:
        folder = Path(temporary)
        # One for all: the first daemon compiles the kernels and measures the costs of steps.
        data_dir = (options.data_dir or folder / "data").resolve()
        flags = [f"--data-dir={data_dir}", "--no-access-log"]
        try:
            targets = _targets(folder, flags, options)
            with daemons(folder, options.instances, [*flags, *targets.flags]) as urls:
                return _compare(folder, urls, targets, options)
        except (OSError, subprocess.SubprocessError, LoadError) as error:
            logs = "\n".join(log_of(path.parent) for path in folder.glob("*/log"))
            print(f"error: {error}\n{logs}", file=sys.stderr)
            return 1


def _targets(folder: Path, flags: Sequence[str], options: argparse.Namespace) -> Targets:
    """Those of the options, or multiples of what a daemon needs for one request alone."""
    if options.targets:
        return Targets(*options.targets)
    requests = make_workload(f"{WORKLOAD}:{NUM_ALONE}", seed=-1, scale=SCALE)
    with serving(DEMO_MODEL, 1, flags, folder / "alone") as url:
        summary = load(url, requests, max_concurrency=1)["summary"]
    if summary["num_failed"]:
        raise LoadError(f"the calibration failed: {summary['errors']}")
    alone = Targets(summary["ttft_s"]["p50"], summary["tpot_s"]["p50"])
    targets = Targets(
        round(options.ttft_multiple * alone.ttft_s, 3),
        round(options.tpot_multiple * alone.tpot_s, 4),
    )
    print(
        f"alone: TTFT {_ms(alone.ttft_s)} ms, TPOT {_ms(alone.tpot_s)} ms; "
        f"targets {_ms(targets.ttft_s)} ms and {_ms(targets.tpot_s)} ms",
        flush=True,
    )
    return targets


@contextmanager
def daemons(folder: Path, number: int, flags: Sequence[str]) -> Iterator[list[str]]:
    """Run so many daemons during the block; yields their URLs."""
    with ExitStack() as stack, ThreadPoolExecutor(number) as pool:

        def start(i: int) -> str:
            return stack.enter_context(serving(DEMO_MODEL, 1, flags, folder / f"daemon-{i}"))

        yield list(pool.map(start, range(number)))


def load(url: str, requests: Sequence[Request], max_concurrency: int | None = None) -> Any:
    """The report of the load client (`bench/`)."""
    target = LoadTarget(Address.of(url))
    bounds = Bounds(REQUEST_TIMEOUT_S, RUN_TIMEOUT_S, max_concurrency)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measure([*map(call_of, requests)], target, bounds))


def _compare(
    folder: Path, urls: Sequence[str], targets: Targets, options: argparse.Namespace
) -> int:
    rates = options.rates or _shares(_capacity(folder, urls), options.shares)
    runs: dict[tuple[float, str], list[dict[str, Any]]] = {
        (rate, rule): [] for rate in rates for rule in options.rules
    }
    turns = [(r, rule) for r in range(options.rounds) for rule in _rotated(options.rules, r)]
    for round_number, rule in tqdm(turns, file=sys.stderr, disable=None):
        flags = [f"--routing={rule}", "--no-access-log"]
        with routing(urls, flags, folder / f"{rule}-{round_number}") as url:
            for rate in rates:
                requests = arrivals(rate, options.seconds, seed=round_number)
                runs[rate, rule].append(load(url, requests))
    print(f"{describe_machine()}\n\n{table(runs, targets)}")
    failed = sum(report["summary"]["num_failed"] for each in runs.values() for report in each)
    print(f"\n{failed} requests failed")
    return int(failed > 0)


def _capacity(folder: Path, urls: Sequence[str]) -> float:
    """Requests per second when all are there at once, until most have ended: not its tail."""
    requests = make_workload(f"{WORKLOAD}:{NUM_AT_ONCE}", seed=-2, scale=SCALE)
    flags = ["--routing=round-robin", "--no-access-log"]
    with routing(urls, flags, folder / "capacity") as url:
        load(url, requests)  # the first steps of each size are slow
        report = load(url, requests)
    ends: list[float] = sorted(
        r["sent_s"] + r["e2e_s"] for r in report["requests"] if r["error"] is None
    )
    if len(ends) < len(requests):
        raise LoadError(f"the calibration failed: {report['summary']['errors']}")
    num_most = round(MOST * len(ends))
    rate = num_most / ends[num_most - 1]
    print(f"capacity: {rate:.1f} requests/s", flush=True)
    return rate


def _shares(capacity: float, shares: Sequence[float]) -> list[float]:
    return [round(share * capacity, 1) for share in shares]


def _rotated(rules: Sequence[str], by: int) -> list[str]:
    """Another rule is first in each round: a machine that others use too drifts."""
    return [rules[(i + by) % len(rules)] for i in range(len(rules))]


def arrivals(rate: float, seconds: float, seed: int) -> list[Request]:
    """Poisson arrivals for so many seconds on average; the same for the same seed."""
    number = max(2, round(rate * seconds))
    requests = make_workload(f"{WORKLOAD}:{number}", seed=seed, scale=SCALE)
    return with_arrivals(requests, rate, 1.0, seed)


def table(runs: dict[tuple[float, str], list[dict[str, Any]]], targets: Targets) -> str:
    """Each rate and rule in a line; medians over the rounds, and the range of the shares."""
    lines = [
        "| requests/s | rule | met both targets | TTFT p50 / p90, ms | TPOT p50 / p90, ms |",
        "|--:|---|--:|--:|--:|",
    ]
    for (rate, rule), reports in runs.items():
        met = sorted(
            sum(map(targets.are_met, report["requests"])) / len(report["requests"])
            for report in reports
        )
        share = f"{median(met):.1%}"
        if len(met) > 1:
            share += f" ({met[0]:.1%}–{met[-1]:.1%})"
        cells = [_latencies(reports, name) for name in ("ttft_s", "tpot_s")]
        lines.append(f"| {rate:g} | {rule} | {share} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _latencies(reports: Sequence[dict[str, Any]], name: str) -> str:
    spreads = [report["summary"][name] for report in reports if report["summary"][name]]
    if not spreads:
        return "-"
    return " / ".join(_ms(median(each[p] for each in spreads)) for p in ("p50", "p90"))


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_router",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=positive_int, default=3, help="[3]")
    add("--seconds", type=positive, default=15.0, help="of arrivals in each run [15]")
    add("--rates", type=positive, nargs="+", help="requests per second [shares of the capacity]")
    add("--shares", type=positive, nargs="+", default=[0.4, 0.8], help="[0.4 0.8]")
    add("--rules", nargs="+", choices=RULES, default=list(RULES), help="[all four]")
    add("--instances", type=positive_int, default=4, help="number of daemons [4]")
    add("--data-dir", type=Path, help="with compiled kernels of an earlier run [a temporary one]")
    add("--targets", type=positive, nargs=2, metavar="S", help="TTFT and TPOT [by the multiples]")
    add("--ttft-multiple", type=positive, default=8.0, help="target / TTFT alone [8]")
    add("--tpot-multiple", type=positive, default=4.0, help="target / TPOT alone [4]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
