"""Sends ten times the load that a daemon can serve, for two minutes: `make overload`.

A daemon with the demo model is first overloaded to measure its rate. Then it gets nine tenths of
this rate, which it can serve, and then ten times as much. The command prints Markdown: the answers,
the latency of refusals, and the memory of the processes. `--step-ms` replaces the model by stages
that only wait: on a machine with few cores, the server then does not share the cores with stages,
as on a host with GPUs.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import uvloop

from bench.call import call_of
from bench.exchange import Address
from bench.load_run import Bounds
from bench.machine import describe_machine
from bench.measurement import measure
from bench.server import LoadTarget
from benchmarks import daemon_run
from benchmarks.costs import stream_cost
from benchmarks.stress.memory import MB, process_of
from configs.schema.model import DEMO_MODEL
from simulator.argument_types import positive
from simulator.spread import spread
from simulator.workloads.make_workload import make_workload, with_arrivals
from simulator.workloads.request import Request

SCALE = 0.25  # of ShareGPT's lengths, for a CPU
BURST = 200
SCRIPTED_SEQS = 64
SEARCH_S = 45.0
SUSTAINED = 0.9  # of the measured rate
# The time before anything counts: the queue fills, and caches are still cold.
RAMP_S = 15.0
LOOK_INTERVAL_S = 0.5
PROCESSES = ("server", "engine")
MIN_GOODPUT, MAX_REFUSAL_S, MAX_GROWTH_MB = 0.9, 0.05, 30.0


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """The figures of one rate, between the ramp and the end."""

    rate: float
    num_asked: int
    answers_per_s: float
    tokens_per_s: float
    ttft_s: dict[str, float] | None
    refusal_s: dict[str, float] | None
    num_refused: int
    num_failed: int
    client_cores: float
    # Mean resident megabytes in the first and the last third.
    memory_mb: dict[str, tuple[float, float]]

    @property
    def growth_mb(self) -> float:
        """Return the growth of the process that has grown most."""
        return max(last - first for first, last in self.memory_mb.values())


def load_of(report: dict[str, Any], rate: float, seconds: float, looks: "Looks") -> LoadFigures:
    """The figures of one run, as `bench.measurement` reports it."""
    requests = report["requests"]
    refused = [r for r in requests if _is_refused(r)]
    whole = [r for r in requests if r["error"] is None and RAMP_S <= _end(r) <= seconds]
    failed = [r for r in requests if r["error"] is not None and not _is_refused(r) and r["e2e_s"]]
    counted_s = seconds - RAMP_S
    return LoadFigures(
        rate=rate,
        num_asked=len(requests),
        answers_per_s=len(whole) / counted_s,
        tokens_per_s=sum(r["num_output_tokens"] for r in whole) / counted_s,
        ttft_s=spread(r["ttft_s"] for r in whole),
        refusal_s=spread(r["e2e_s"] for r in refused),
        num_refused=len(refused),
        num_failed=sum(not r["error"].startswith("open when the run") for r in failed),
        client_cores=report["client_cpu_s"] / seconds,
        memory_mb=looks.thirds(),
    )


class Looks:
    """The memory of some processes, sampled in a thread until the block ends."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[float, float]]] = {name: [] for name in PROCESSES}
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take samples during the block."""
        processes = {name: process_of(name) for name in PROCESSES}
        began_at = time.monotonic()
        thread = threading.Thread(target=self._look, args=(processes, began_at))
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def thirds(self) -> dict[str, tuple[float, float]]:
        """Return, by process, the means of the first third after the ramp and of the last."""
        return {
            name: _thirds([mb for at, mb in s if at > RAMP_S]) for name, s in self._seen.items()
        }

    def _look(self, processes: dict[str, psutil.Process], began_at: float) -> None:
        while not self._ended.wait(LOOK_INTERVAL_S):
            for name, process in processes.items():
                seen = (time.monotonic() - began_at, process.memory_info().rss / MB)
                self._seen[name].append(seen)


def _thirds(values: list[float]) -> tuple[float, float]:
    third = max(1, len(values) // 3)
    return (fmean(values[:third]), fmean(values[-third:])) if values else (0.0, 0.0)


def _is_refused(request: dict[str, Any]) -> bool:
    return bool(request["error"] and request["error"].startswith("HTTP 429"))


def _end(request: dict[str, Any]) -> float:
    return float(request["sent_s"] + request["e2e_s"])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; return 1 if a figure exceeds its limit."""
    options = _parser().parse_args(argv)
    print(f"machine: {json.dumps(describe_machine())}", file=sys.stderr)
    with (
        _serving(options.step_ms) as address,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        steady, overload = runner.run(_run(address, options))
    print("\n".join(_table(steady, overload)))
    goodput = overload.tokens_per_s / steady.tokens_per_s
    print(f"\nGoodput relative to that without overload: {goodput:.2f}.")
    print(f"machine: {json.dumps(describe_machine())}", file=sys.stderr)
    refusal_s = overload.refusal_s or {"p99": float("inf")}
    is_good = goodput >= MIN_GOODPUT and refusal_s["p99"] < MAX_REFUSAL_S
    is_whole = not (steady.num_failed or overload.num_failed)
    return int(not (is_good and is_whole and overload.growth_mb < MAX_GROWTH_MB))


@contextmanager
def _serving(step_ms: float | None) -> Iterator[Address]:
    """The daemon, or one with steps that take this long and compute nothing."""
    if step_ms is not None:
        settings = {"max_num_queued_reqs": 1024, "max_num_seqs": SCRIPTED_SEQS, "access_log": False}
        with stream_cost.serving(2, step_ms, **settings) as served:
            yield served.address
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "daemon"
        with daemon_run.serving(DEMO_MODEL, 2, ["--no-access-log"], folder) as url:
            yield Address.of(url)


async def _run(address: Address, options: argparse.Namespace) -> tuple[LoadFigures, LoadFigures]:
    rate = options.rate or SUSTAINED * await _sustainable_rate(address)
    steady = await _at(address, rate, options.seconds, seed=1)
    return steady, await _at(address, options.factor * rate, options.seconds, seed=2)


async def _sustainable_rate(address: Address) -> float:
    """Answers per second with a full queue, measured with a burst that also warms up."""
    requests = make_workload(f"sharegpt:{BURST}", scale=SCALE, seed=3)
    calls = [*map(call_of, requests)]
    report = await measure(calls, LoadTarget(address), Bounds(300.0, 300.0))
    burst_rate = float(report["summary"]["requests_per_s"])
    return (await _at(address, 3 * burst_rate, SEARCH_S, seed=4)).answers_per_s


async def _at(address: Address, rate: float, seconds: float, seed: int) -> LoadFigures:
    looks = Looks()
    with looks.running():
        bounds = Bounds(request_timeout_s=seconds, timeout_s=seconds)
        calls = [*map(call_of, _requests(rate, seconds, seed))]
        report = await measure(calls, LoadTarget(address), bounds)
    await asyncio.sleep(5)  # until the requests that were cut off are aborted
    return load_of(report, rate, seconds, looks)


def _requests(rate: float, seconds: float, seed: int) -> list[Request]:
    workload = make_workload(f"sharegpt:{round(rate * seconds)}", scale=SCALE, seed=seed)
    return with_arrivals(workload, rate, burstiness=1.0, seed=seed)


def _table(*loads: LoadFigures) -> Iterator[str]:
    yield (
        "| asked, requests/s | answered/s | output tokens/s | TTFT p50, ms | refused | "
        "refusal p50, ms | p99 | failed | client, cores | server, MB | engine, MB |"
    )
    yield "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for load in loads:
        columns = (
            f"{load.rate:.1f}",
            f"{load.answers_per_s:.1f}",
            f"{load.tokens_per_s:.0f}",
            _ms(load.ttft_s, "p50"),
            f"{load.num_refused} of {load.num_asked}",
            _ms(load.refusal_s, "p50"),
            _ms(load.refusal_s, "p99"),
            str(load.num_failed),
            f"{load.client_cores:.2f}",
            *(f"{first:.0f} → {last:.0f}" for first, last in load.memory_mb.values()),
        )
        yield f"| {' | '.join(columns)} |"


def _ms(figures: dict[str, float] | None, name: str) -> str:
    return f"{1000 * figures[name]:.0f}" if figures else "-"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.stress.overload", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=positive, default=120.0, help="duration of each load in seconds [120]")
    add(
        "--factor",
        type=positive,
        default=10.0,
        help="overload, as a multiple of the sustainable rate [10]",
    )
    add("--step-ms", type=positive, help="replace the model by stages that only wait")
    add("--rate", type=positive, help="the sustainable rate in requests per second [measured]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
